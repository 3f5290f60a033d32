"""Entry point ``python -m threedim.data.render``; the program is `threedim.rendering.render`."""

from threedim.rendering.render import main

if __name__ == "__main__":
    main()
