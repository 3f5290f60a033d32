# shellcheck shell=bash disable=SC2034
# What the launch scripts share: messages, options, quoting, checks and dry runs. It is sourced, not run.
#
# Messages go to stderr, so that the stdout of --dry_run holds nothing but commands.

if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
  echo "error: bash 4.4 or newer is needed, this is $BASH_VERSION; on macOS: brew install bash" >&2
  exit 1
fi

dry_run=0
positional=() program_args=() repeated=()

say() { printf '%s\n' "$*" >&2; }

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# The comment at the top of a script is its help.
usage() { sed -n '2,/^$/s/^# \{0,1\}//p' "$0"; }

# Words as a POSIX shell reads them: plain ones as they are, the others in single quotes.
quote() {
  local LC_ALL=C word rest out="" quoted
  for word in "$@"; do
    if [[ $word =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]]; then
      quoted=$word
    else
      rest=$word quoted="'"
      while [[ $rest == *\'* ]]; do
        quoted+="${rest%%\'*}'\\''"
        rest=${rest#*\'}
      done
      quoted+="$rest'"
    fi
    out+=" $quoted"
  done
  printf '%s' "${out# }"
}

# run COMMAND...: what changes something goes through here. --dry_run prints it; a failure names it and ends the script.
run() {
  if ((dry_run)); then
    printf '%s\n' "$(quote "$@")"
    return
  fi
  local status=0
  "$@" || status=$?
  ((status == 0)) || fail "exit status $status from: $(quote "$@")"
}

# ask COMMAND...: what only looks. $answer is what it prints, $complaint its errors; returns its exit status.
# --dry_run prints it and answers nothing.
ask() {
  answer="" complaint=""
  if ((dry_run)); then
    printf '%s\n' "$(quote "$@")"
    return
  fi
  local errors status=0
  errors=$(mktemp)
  answer=$("$@" 2>"$errors" </dev/null) || status=$?
  complaint=$(<"$errors")
  rm -f "$errors"
  return "$status"
}

# parse "VALUED" "FLAGS" "REPEATED" ARGUMENTS...: sets opt_NAME for every option, $positional, and $program_args, which
# is everything after --. A REPEATED option (there is at most one) is collected in $repeated.
parse() {
  local valued=" ${1//$'\n'/ } " flags=" $2 dry_run " lists=" $3 " name
  shift 3
  while (($#)); do
    case $1 in
      --)
        shift
        program_args=("$@")
        break
        ;;
      -h | --help)
        usage
        exit 0
        ;;
      --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
    esac
    name=${1#--}
    if [[ $1 != --* ]]; then
      positional+=("$1")
    elif [[ $flags == *" $name "* ]]; then
      printf -v "opt_$name" 1
    elif [[ $valued == *" $name "* || $lists == *" $name "* ]]; then
      (($# > 1)) || fail "--$name needs a value"
      if [[ $lists == *" $name "* ]]; then repeated+=("$2"); else printf -v "opt_$name" '%s' "$2"; fi
      shift
    else
      fail "no option $1; --help lists them. Arguments of threedim.main come after --"
    fi
    shift
  done
  dry_run=${opt_dry_run:-0}
}

# need COMMAND "HOW TO GET IT". A dry run only notes what is missing: it can be looked at anywhere.
need() {
  command -v "$1" >/dev/null && return
  if ((dry_run)); then say "note: $1 is not installed; $2"; else fail "$1 is not installed; $2"; fi
}

positive() { [[ $2 =~ ^[1-9][0-9]*$ ]] || fail "$1 must be a positive integer, got '$2'"; }

number() { [[ $2 =~ ^[0-9]+([.][0-9]+)?$ ]] || fail "$1 must be a number of seconds, got '$2'"; }

given() { [[ -n $2 ]] || fail "--$1 is missing; $3"; }

# The python of the checkout's virtual environment, else the first on the PATH.
find_python() {
  if [[ -x $root/.venv/bin/python ]]; then printf '%s' "$root/.venv/bin/python"; else printf 'python3'; fi
}

# argument_of NAME: the value of --NAME among the arguments of the program; nothing where it is not there.
argument_of() {
  local i
  for ((i = 0; i < ${#program_args[@]}; i++)); do
    case ${program_args[i]} in
      --"$1"=* | -"$1"=*) printf '%s' "${program_args[i]#*=}" && return ;;
      --"$1" | -"$1") printf '%s' "${program_args[i + 1]:-}" && return ;;
    esac
  done
}

# Checks the arguments of threedim.main as far as can be done without running it, and adds --distributed.
check_program_args() {
  local argument config mode
  ((${#program_args[@]})) || fail "arguments of threedim.main are missing; they come after --, such as" \
    "-- --config=configs/srn_cars.py --mode=train --workdir=FOLDER"
  for argument in "${program_args[@]}"; do
    [[ $argument != *$'\n'* ]] || fail "line break in an argument of threedim.main: $(quote "$argument")"
  done
  config=$(argument_of config) mode=$(argument_of mode) workdir=$(argument_of workdir)
  [[ -n $config ]] || fail "--config=FILE is missing after --; configs/ has them"
  [[ -n $mode ]] || fail "--mode=train, sample, prepare or evaluate is missing after --"
  [[ -n $workdir || $mode == prepare ]] || fail "--workdir=FOLDER is missing after --; --mode=$mode needs it"
  config_file=${config%%:*}
  [[ " ${program_args[*]} " == *" --distributed "* ]] || program_args+=(--distributed)
}

# The configuration is read where the program runs; a relative path is looked up from the root of the checkout.
check_config_file() { (cd "$root" && [[ -f $config_file ]]) || fail "--config=$config_file: no such file in $root"; }

# What await does after a signal; a script may have its own. (Traps themselves only take note.)
on_interrupt() { :; }

# await PID: waits for a child through any number of trapped signals, whose traps set interrupted=1. Sets $code.
await() {
  local status
  code=127
  while :; do
    interrupted=0 status=0
    wait "$1" || status=$?
    # 127: the status was handed out already, when the signal came just after the end.
    ((status == 127)) || code=$status
    ((interrupted && status > 128)) || return 0
    on_interrupt
  done
}

# Where the checkout is that the calling script lies in.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
