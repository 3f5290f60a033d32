"""Entry point ``python -m threedim.evaluation.consistency``; the program is `threedim.consistency.score`."""

from threedim.consistency.score import main

if __name__ == "__main__":
    main()
