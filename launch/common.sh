# shellcheck shell=bash disable=SC2034
# Shared by the launch scripts: options, checks, quoting and dry runs. Source it; do not run it.
#
# Messages go to stderr, so the stdout of a dry run holds nothing but commands.

if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
  echo "error: bash 4.4 or newer is required, this is $BASH_VERSION (macOS: brew install bash)" >&2
  exit 1
fi

# The checkout that these scripts belong to.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
program_args=() opt_dry_run=false

say() { printf '%s\n' "$*" >&2; }
fail() { say "error: $*" && exit 1; }

# Quotes words for a shell; plain words stay as they are.
quote() {
  local word out=""
  for word in "$@"; do
    [[ $word =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]] || word=${word@Q}
    out+=" $word"
  done
  printf '%s' "${out# }"
}

print_command() { printf '%s\n' "$(quote "$@")"; }
# run COMMAND...: runs a command that changes something. --dry_run prints it; a failure names it and ends the script.
run() {
  if $opt_dry_run; then print_command "$@" && return; fi
  local status=0
  "$@" || status=$?
  ((status == 0)) || fail "exit status $status from: $(quote "$@")"
}

# ask COMMAND...: runs a command that only reads. Sets $answer to its stdout and $complaint to its stderr, and returns
# its exit status. --dry_run prints the command and leaves both empty.
ask() {
  answer="" complaint=""
  if $opt_dry_run; then print_command "$@" && return; fi
  local errors status=0
  errors=$(mktemp)
  answer=$("$@" 2>"$errors" </dev/null) || status=$?
  complaint=$(<"$errors")
  rm -f "$errors"
  return "$status"
}

# parse ARGUMENTS...: --NAME=VALUE (or --NAME VALUE) sets the variable opt_NAME, which the script must have set to its
# default. A flag's default is `false`; an array collects a repeated option. A script that takes one more word has set
# `action` to "". Everything after -- goes to $program_args. The comment at the top of the script is its help.
parse() {
  local declared name
  while (($#)); do
    case $1 in
      --)
        program_args=("${@:2}")
        return
        ;;
      -h | --help)
        sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
        exit 0
        ;;
      --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
    esac
    name=opt_${1#--}
    if [[ $1 != --* ]]; then
      [[ -v action && -z $action ]] || fail "unexpected argument $1; arguments of threedim.main go after --"
      action=$1
    elif ! declared=$(declare -p "$name" 2>/dev/null); then
      fail "unknown option $1; see --help. Arguments of threedim.main go after --"
    elif [[ $declared =~ =\"(true|false)\"$ ]]; then
      printf -v "$name" true
    else
      (($# > 1)) || fail "--${name#opt_} needs a value"
      if [[ $declared == "declare -a"* ]]; then
        local -n list=$name
        list+=("$2")
      else
        printf -v "$name" '%s' "$2"
      fi
      shift
    fi
    shift
  done
}

# need COMMAND "HOW TO INSTALL IT". A dry run works without it.
need() { command -v "$1" >/dev/null || $opt_dry_run || fail "$1 is not installed; $2"; }
# given NAME HINT: the option --NAME is required.
given() { local value=opt_$1 && [[ -n ${!value} ]] || fail "--$1 is missing; $2"; }

# must_be DESCRIPTION REGEX NAME...: checks the values of these options.
must_be() {
  local name value
  for name in "${@:3}"; do
    value=opt_$name
    [[ ${!value} =~ $2 ]] || fail "--$name must be $1, got '${!value}'"
  done
}

positive() { must_be "a positive integer" '^[1-9][0-9]*$' "$@"; }
find_python() { if [[ -x $root/.venv/bin/python ]]; then echo "$root/.venv/bin/python"; else echo python3; fi; }
# argument_of NAME: prints the value of --NAME among the arguments of threedim.main, or nothing.
argument_of() {
  local IFS=$'\n' eol=$'\n'
  [[ $eol"${program_args[*]}" =~ $eol--?$1[=$eol]([^$eol]*) ]] || return 0
  printf '%s' "${BASH_REMATCH[1]}"
}

# Checks the arguments of threedim.main as far as possible without running it, and adds --distributed. Relative paths
# are relative to the root of the checkout, where the program runs.
check_program_args() {
  local mode
  ((${#program_args[@]})) || fail "the arguments of threedim.main are missing; they go after --, for example" \
    "-- --config=configs/srn_cars.py --mode=train --workdir=FOLDER"
  [[ ${program_args[*]} != *$'\n'* ]] || fail "line break in an argument of threedim.main"
  config_file=$(argument_of config) mode=$(argument_of mode) workdir=$(argument_of workdir)
  config_file=${config_file%%:*}
  [[ -n $config_file ]] || fail "--config=FILE is missing after --; see configs/"
  [[ -f $root/$config_file || ! -f $root/configs/$config_file.py ]] || config_file=configs/$config_file.py # a name
  [[ -n $mode ]] || fail "--mode=train, sample, prepare or evaluate is missing after --"
  [[ -n $workdir || $mode == prepare ]] || fail "--workdir=FOLDER is missing after --; --mode=$mode requires it"
  (cd "$root" && [[ -f $config_file ]]) || fail "--config=$config_file: no such file in $root"
  [[ " ${program_args[*]} " == *" --distributed "* ]] || program_args+=(--distributed)
}

# Checks what every program in the cloud needs. --dry_run works without being logged in.
check_cloud() {
  given project "or set CLOUDSDK_CORE_PROJECT; gcloud config get-value project shows your default"
  given zone "or set CLOUDSDK_COMPUTE_ZONE"
  need gcloud "see https://cloud.google.com/sdk/docs/install"
  ask gcloud auth list --filter=status:ACTIVE '--format=value(account)' || fail "gcloud auth list failed: $complaint"
  $opt_dry_run || [[ -n $answer ]] || fail "not logged in to Google Cloud; run: gcloud auth login"
}

check_cloud_args() {
  check_program_args
  [[ -z $workdir || $workdir == gs://?* ]] ||
    fail "--workdir=$workdir must be on gs://, which all workers share and which outlives them"
  [[ $config_file != /* ]] || fail "--config=$config_file must be relative to the checkout, which is what gets copied"
}

# await PID: waits for a child process; trapped signals do not end the wait. Sets $code to its exit status.
await() {
  local status alive=true
  code=127
  while $alive; do
    # Once the child is gone, `wait` returns at once, so no signal can interrupt it.
    kill -0 "$1" 2>/dev/null || alive=false
    status=0
    wait "$1" || status=$?
    # Older versions of bash report a status only once, then 127.
    ((status == 127)) || code=$status
    ((status > 128)) || return 0
  done
}
