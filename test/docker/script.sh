#!/bin/sh
# What a docker user types. CLI names the program (docker, kata) and WORK an empty directory with busybox.tar (docker save).
# Prints each case's commands, what they say and their exit codes, without what is another one each time.
set -u
cd "$WORK" || exit

same() {
  sed -E -e 's/sha256:[0-9a-f]{64}/sha256:<digest>/g' -e 's/\b[0-9a-f]{64}\b/<id>/g' -e 's/\b[0-9a-f]{12}\b/<short id>/g' \
    -e 's/[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]+(Z|\+00:00)/<time>/g' \
    -e 's/(Up|Exited \([0-9]+\)|Created) (Less than a second|About a minute|[0-9]+ (seconds?|minutes?))( ago)?/\1 <time>\4/g' \
    -e "s|$WORK|<work>|g" "$@"
}
title() { printf '\n== %s\n' "$1"; }
# Runs a command whose every word counts.
t() {
  printf '$ %s\n' "$*" | same
  "$CLI" "$@" >out 2>err </dev/null
  code=$?
  same out
  same err | sed 's/^/2> /'
  echo "exit $code"
}
# As t, with an input.
i() {
  text=$1
  shift
  printf '$ printf %s | %s\n' "$text" "$*"
  printf "$text" | "$CLI" "$@" 2>err
  echo "exit $?"
  same err | sed 's/^/2> /'
}
# Runs a command that fails: which words it says is its own affair.
e() {
  printf '$ %s\n' "$*" | same
  "$CLI" "$@" >out 2>err </dev/null
  code=$?
  same out
  [ -s err ] && echo '2> (some words)'
  echo "exit $code"
}
# Waits, for a minute at most, until inspect says something of a container.
comes() {
  for _ in $(seq 120); do
    [ "$("$CLI" inspect -f "$2" "$1" 2>/dev/null)" = "$3" ] && return
    sleep 0.5
  done
}
# Goes before a case and is not shown.
quietly() { "$CLI" "$@" >/dev/null 2>&1 </dev/null; }

title load
t load -i busybox.tar
title images
t images --format '{{.Repository}} {{.Tag}}' busybox
title image-names
quietly tag busybox mine:1
t images --format '{{.Repository}}:{{.Tag}}' mine
t rmi mine:1
e rmi mine:1
title image-inspect
t image inspect -f '{{json .RepoTags}} {{.Os}} {{.Architecture}} {{json .Config.Cmd}}' busybox
e image inspect nothing
title image-save
quietly save -o again.tar busybox
t load -q -i again.tar

title run-output
t run --rm busybox sh -c 'echo out; echo error >&2; exit 7'
title run-stdin
i 'one\ntwo\n' run --rm -i busybox cat
title run-options
printf 'FROM_FILE=file\n' >env
t run --rm -e GIVEN=1 --env-file env -w /tmp -u 1000:1001 -h box --entrypoint sh --read-only --tmpfs /t busybox \
  -c 'echo $GIVEN $FROM_FILE; pwd; id -u; id -g; hostname; touch /x; touch /t/x && ls /t'
title run-not-found
e run --rm busybox no-such-command
title run-not-executable
e run --rm busybox /etc
title run-unknown-image
e run --rm --pull never no-such-image true
title run-bad-flag
e run --no-such-flag busybox
title run-no-image
e run
title run-mounts
mkdir -p shared
echo host >shared/from-host
t run --rm -v "$WORK/shared:/w" -v "$WORK/shared:/r:ro" busybox sh -c 'cat /w/from-host; echo guest > /w/from-guest; touch /r/no'
cat shared/from-guest

title volume
t volume create data
t volume ls -q
quietly run --rm -v data:/d busybox sh -c 'echo kept > /d/file'
t run --rm -v data:/d:ro busybox cat /d/file
t volume inspect -f '{{.Name}} {{.Driver}} {{.Scope}}' data
t volume rm data
e volume rm data
e volume inspect data

title run-detached
t run -d --name web -l stage=test -e A=1 -m 128m --stop-timeout 5 busybox \
  sh -c 'echo started; sleep 0.5; echo bad >&2; trap "echo bye; exit 3" TERM; while :; do sleep 0.1; done'
sleep 2
title name-taken
e run --name web busybox true
title ps
t ps --format '{{.Names}} {{.Image}} {{.Status}} {{.State}}'
t ps -q
t ps --filter name=web --filter label=stage=test --format '{{.Names}} {{.Label "stage"}}'
t ps --filter name=no-such-container --format '{{.Names}}'
title ps-table
"$CLI" ps >out 2>&1
sed -n 1p out | tr -s ' '
title exec
t exec web sh -c 'echo in; echo err >&2; exit 4'
i 'typed\n' exec -i web cat
t exec -e B=2 -w /tmp -u 1:2 web sh -c 'echo $A $B; pwd; id -u; id -g'
t exec -d web touch /made
t exec web ls /made
title exec-not-found
e exec web no-such-command
title exec-not-executable
e exec web /etc
title exec-unknown
e exec no-such-container true
title exec-workdir-missing
e exec -w /no/such/directory web pwd
title cp
echo from the host >file
t cp file web:/tmp/in
t exec web cat /tmp/in
t cp web:/tmp/in back
cat back
mkdir -p tree/sub
echo deep >tree/sub/leaf
t cp tree web:/tmp
t cp tree/. web:/tmp/flat
t exec web cat /tmp/tree/sub/leaf /tmp/flat/sub/leaf
"$CLI" cp web:/tmp/tree - | tar t | sort
tar c file | "$CLI" cp - web:/home
t exec web ls /home
title cp-missing
e cp web:/no/such/file here
e cp no-such-file web:/tmp
e cp file no-such-container:/tmp
e cp file web:/no/such/directory/
title diff
"$CLI" diff web | sort
title export
"$CLI" export web | tar t | grep -x made
title commit
t commit -m 'a change' web mine:2
t run --rm mine:2 cat /tmp/in
t rmi mine:2 >untagged
sed 's/<digest>.*/<digest>/' untagged | sort -u
title logs
t logs web
t logs --tail 1 web
"$CLI" logs -t web 2>&1 | grep -cE '^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]+Z (started|bad)$'
e logs no-such-container
title logs-tail-zero
t logs -n 0 web
title inspect
t inspect -f '{{.Name}} {{.State.Status}} {{.State.Running}} {{.State.ExitCode}} {{.RestartCount}}' web
t inspect -f '{{.Config.Image}} {{json .Config.Labels}} {{.HostConfig.Memory}} {{.HostConfig.AutoRemove}}' web
t inspect -f '{{json .Config.Cmd}} {{.Path}} {{len .Args}} {{len .Id}}' web
t inspect -f '{{range .Mounts}}{{.Destination}}{{end}}{{.Config.Tty}} {{.Config.OpenStdin}}' web
t inspect --type container -f '{{.HostConfig.RestartPolicy.Name}} {{.Config.StopTimeout}}' web
title inspect-missing
e inspect no-such-thing
title inspect-missing-field
e inspect -f '{{.NoSuchField}}' web
title rename
t rename web site
t inspect -f '{{.Name}}' site
quietly rename site web
title pause
t pause web
t ps --format '{{.Names}} {{.Status}}'
e exec web true
e pause web
t unpause web
title stats
t stats --no-stream --format '{{.Name}}' web
title update
t update --memory 96m web
t inspect -f '{{.HostConfig.Memory}}' web
title wait-and-stop
"$CLI" wait web >waited 2>&1 &
waiter=$!
sleep 1
t stop web
wait $waiter
cat waited
t inspect -f '{{.State.Status}} {{.State.ExitCode}}' web
t logs --tail 1 web
title stopped
t ps -q
t ps -a --format '{{.Names}} {{.Status}}'
t ps -aq --filter status=exited --filter exited=3
t wait web
t stop web
e kill web
e exec web true
title start
t start web
sleep 1
t inspect -f '{{.State.Status}} {{.State.ExitCode}}' web
title restart
t restart -t 1 web
title kill
sleep 1
t kill -s KILL web
t wait web
t inspect -f '{{.State.ExitCode}} {{.State.OOMKilled}}' web
title rm
t rm web
e rm web
e inspect web
title rm-force-missing
e rm -f no-such-container
title rm-running
quietly run -d --name busy busybox sleep 1000
e rm busy
e rmi busybox
t rm -f busy
t ps -aq
title create-start
t create --name job busybox sh -c 'echo work; exit 6'
t inspect -f '{{.State.Status}}' job
t start -a job
t start -a job
t rm job
title several
quietly create --name one busybox true
quietly create --name two busybox true
e rm one no-such-container two
t ps -aq
title autoremove
quietly run --name gone --rm busybox true
e inspect gone
title restart-policy
t run -d --restart on-failure:1 --name again busybox false
comes again '{{.RestartCount}} {{.State.Status}}' '1 exited'
t inspect -f '{{.RestartCount}} {{.State.Status}} {{.State.ExitCode}} {{json .HostConfig.RestartPolicy}}' again
e run --rm --restart always busybox true
e run --restart sometimes busybox true
quietly rm -f again
title health
t run -d --name sick --health-cmd 'test -e /well' --health-interval 1s --health-retries 1 busybox sleep 1000
comes sick '{{.State.Health.Status}}' unhealthy
t ps --format '{{.Names}} {{.Status}}'
t ps -q --filter health=healthy
quietly exec sick touch /well
comes sick '{{.State.Health.Status}}' healthy
t inspect -f '{{.State.Health.Status}} {{.State.Health.FailingStreak}}' sick
t ps --format '{{.Names}} {{.Status}}'
quietly rm -f sick
title network
t network create back
t network ls --filter name=back --format '{{.Name}} {{.Driver}}'
quietly run -d --name db --network back --network-alias store busybox httpd -f -h /etc
t run --rm --network back busybox sh -c 'wget -q -O /dev/null http://db/passwd && wget -q -O /dev/null http://store/passwd && echo reached'
t run --rm --network none busybox ls /sys/class/net
e network rm back
quietly rm -f db
t network rm back
e network inspect back
title port
quietly run -d --name pub -p 127.0.0.1:18080:80 busybox httpd -f -h /etc
t port pub
t port pub 80
e port pub 81
t ps --format '{{.Names}} {{.Ports}}'
sleep 1
printf 'GET /passwd HTTP/1.0\r\n\r\n' | socat -t 20 - TCP:127.0.0.1:18080 2>&1 | sed -n 1p | tr -d '\r'
quietly rm -f pub
title add-host
t run --rm --add-host there:10.1.2.3 busybox grep there /etc/hosts
title cidfile
quietly run --rm --cidfile id busybox true
wc -c <id | tr -d ' '
e run --rm --cidfile id busybox true
title no-such-command
e no-such-command
title images-left
t images -q no-such-image
e rmi no-such-image
