#!/usr/bin/env bash
# shellcheck disable=SC2016 # single quotes: the container's shell reads its own variables
# Makes an empty compose stack into the one that deploy/backup.sh has written down.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: deploy/restore.sh [-p PROJECT] FOLDER

Checks the backup in FOLDER, refuses a stack that is not empty, starts Postgres and Redis, restores the
artifacts and the database, then starts everything and says which version is live. The images may be newer
than the backup: migrations run as with every start. Secrets come from .env, which may have new ones.
COMPOSE_PROJECT_NAME, COMPOSE_FILE and .env count as for `docker compose`.
TEXT
}

say() { printf 'restore: %s\n' "$*" >&2; }

die() {
  say "$*"
  exit 1
}

# A tool of Postgres in its container, on the stack's database.
of_postgres() {
  docker compose exec -T postgres sh -c 'exec "$@" -U "$POSTGRES_USER" -d "$POSTGRES_DB"' sh "$@"
}

# A shell line in a container of its own that may write the artifacts.
beside_worker() { docker compose run --rm --no-deps --no-TTY worker sh -c "$1"; }

check_backup() {
  for name in ratchet.dump artifacts.tar backup.txt SHA256SUMS; do
    [ -f "$folder/$name" ] || die "$folder has no $name: it is no backup, or half of one"
  done
  (cd "$folder" && sha256sum --quiet --check SHA256SUMS) >&2 || die "the backup is damaged: take another one"
  version=$(sed -n 's/^live version: //p' "$folder/backup.txt")
  say "a backup $(sed -n 's/^taken: /of /p' "$folder/backup.txt"), version $version live"
}

check_empty() {
  local advice=": if nobody needs it, '$forget' deletes all that this project has"
  local running tables found
  running=$(docker compose ps --services --status running | grep -vxE '(postgres|redis)?' | tr '\n' ' ') || true
  [ -z "$running" ] || die "this stack runs: $running; restore into an empty one$advice"
  say "starting postgres and redis"
  docker compose up --detach --wait --quiet-pull postgres redis
  tables=$(of_postgres psql -AtX -c \
    "SELECT count(*) FROM pg_tables WHERE schemaname <> ALL ('{pg_catalog, information_schema}')")
  [ "$tables" = 0 ] || die "the database is not empty, it has $tables tables$advice"
  # the last word alone: where the image isn't built yet, what is said while it is built comes first
  found=$(beside_worker '[ -z "$(ls -A "${RATCHET_ARTIFACTS_URL#file://}" 2>/dev/null)" ] && echo empty || echo full' |
    tail -n 1)
  [ "$found" = empty ] || die "the volume of the artifacts is not empty$advice"
}

restore() {
  trap 'say "it stopped half-way: mend that, $forget, and run this again"' EXIT
  say "the artifacts"
  beside_worker 'umask 022; store=${RATCHET_ARTIFACTS_URL#file://}; mkdir -p "$store" &&
    exec tar --extract --directory="$store" --no-same-owner' <"$folder/artifacts.tar"
  say "the database"
  of_postgres pg_restore --single-transaction --exit-on-error --no-owner <"$folder/ratchet.dump"
  of_postgres psql -qX -c ANALYZE # the planner knows nothing of tables that were just filled
  trap - EXIT
}

# The version that a replica of the API serves.
live() {
  docker compose exec -T api python -c 'import json
from urllib.request import urlopen
print(json.load(urlopen("http://127.0.0.1:8000/ready", timeout=10))["model_version"])' 2>/dev/null
}

main() {
  case ${1:-} in
    -h | --help) usage && exit 0 ;;
    -p) [ $# -ge 3 ] || { usage >&2 && exit 2; }
      export COMPOSE_PROJECT_NAME=$2 && shift 2 ;;
  esac
  case $# in 1) ;; *) usage >&2 && exit 2 ;; esac
  folder=$(realpath --canonicalize-missing "$1")
  cd "$(dirname "$0")/.."
  forget="docker compose --project-name $(docker compose config | sed -n 's/^name: //p') down --volumes"
  check_backup
  check_empty
  restore
  say "starting everything"
  docker compose up --detach --wait
  for _ in $(seq 30); do
    served=$(live) && break
    sleep 1
  done
  [ -n "${served:-}" ] || die "the API serves no model: docker compose logs api"
  [ "$served" = "$version" ] || say "version $version was; a job that was due has been run since"
  echo "version $served is live"
}

main "$@"
