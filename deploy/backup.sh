#!/usr/bin/env bash
# shellcheck disable=SC2016 # single quotes: the container's shell reads its own variables
# Backs up a running compose stack. One snapshot of the database is held open: it says which files there are,
# they are copied at once, and the dump, which may take hours, is of that very moment. The files never change;
# only if one was removed before it could be copied does it all start afresh.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: deploy/backup.sh [-p PROJECT] FOLDER

Writes FOLDER (new or empty, readable by you alone) with
  ratchet.dump    the database, of pg_dump's custom format
  artifacts.tar   the models and dataset parts that it names
  backup.txt      when, from which image, which schema, which version was live
  SHA256SUMS      of all three; `sha256sum --check SHA256SUMS` checks them

The stack goes on meanwhile. Redis is not in it: it fills itself from the database. Neither is .env: keep it
elsewhere, it holds your keys. COMPOSE_PROJECT_NAME, COMPOSE_FILE and .env count as for `docker compose`.
deploy/restore.sh FOLDER makes an empty stack into this one.
TEXT
}

ASK="BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;
SELECT 'set', artifact_key FROM model_versions WHERE artifacts_removed_at IS NULL;
SELECT 'file', key FROM dataset_parts;
SELECT 'schema', version_num FROM alembic_version;
SELECT 'live', champion FROM deployments ORDER BY id DESC LIMIT 1;
SELECT 'snapshot', pg_export_snapshot();
"

say() { printf 'backup: %s\n' "$*" >&2; }

die() {
  say "$*"
  exit 1
}

# A tool of Postgres in its container, on the stack's database.
of_postgres() {
  docker compose exec -T postgres sh -c 'exec "$@" -U "$POSTGRES_USER" -d "$POSTGRES_DB"' sh "$@"
}

# Holds a snapshot of the database open in a process of its own, and writes down what it names.
hold_snapshot() {
  coproc SNAPSHOT {
    { printf '%s' "$ASK" && cat; } | of_postgres psql -qAtX -F ' ' -v ON_ERROR_STOP=1
  }
  taken=$(date -u +%Y-%m-%dT%H:%M:%SZ) snapshot='' live='' schema=''
  : >"$part/sets"
  : >"$part/parts"
  while [ -z "$snapshot" ] && read -r -t 60 kind value <&"${SNAPSHOT[0]:-}"; do
    case $kind in
      set) echo "$value" >>"$part/sets" ;;
      file) echo "$value" >>"$part/parts" ;;
      *) declare -g "$kind=$value" ;;
    esac
  done
  [ -n "$snapshot" ] || die "no snapshot: does postgres run in this project, and has it Ratchet's tables?"
  [ -n "$live" ] || die "there is no model yet, so there is nothing to back up"
}

release_snapshot() {
  [ -n "${SNAPSHOT_PID:-}" ] || return 0 # it ended by itself
  local asks=${SNAPSHOT[1]}
  exec {asks}>&-
  wait "$SNAPSHOT_PID" || true
}

# Copies what the snapshot names; false if some of it isn't there.
copy_files() {
  say "$(wc -l <"$part/sets") models and $(wc -l <"$part/parts") dataset parts"
  cat "$part/sets" "$part/parts" |
    docker compose exec -T "$reader" sh -c \
      'exec tar --create --directory="${RATCHET_ARTIFACTS_URL#file://}" --files-from=-' \
      >"$part/artifacts.tar" || return 1
  # a set that is being removed loses its manifest first
  sed 's|$|/manifest.json|' "$part/sets" | cat - "$part/parts" | sort >"$part/wanted"
  tar --list --file="$part/artifacts.tar" | sort | comm -23 "$part/wanted" - >"$part/missing"
  [ ! -s "$part/missing" ]
}

dump() {
  say "the database"
  of_postgres pg_dump --format=custom --snapshot="$snapshot" >"$part/ratchet.dump" || die "pg_dump failed"
}

describe() {
  local of='org.opencontainers.image' container image
  container=$(docker compose ps --quiet "$reader" | head -n 1)
  image=$(docker inspect "$container" --format "{{.Config.Image}}, version {{index .Config.Labels \
\"$of.version\"}}, revision {{index .Config.Labels \"$of.revision\"}}")
  printf 'taken: %s\nimage: %s\nschema: %s\nlive version: %s\n' "$taken" "$image" "$schema" "$live" \
    >"$part/backup.txt"
  rm "$part"/{sets,parts,wanted,missing}
  (cd "$part" && sha256sum ratchet.dump artifacts.tar backup.txt >SHA256SUMS && sync ./*)
}

prepare() {
  [ ! -e "$folder" ] || [ -d "$folder" ] || die "$folder is no folder"
  [ ! -d "$folder" ] || [ -z "$(ls -A "$folder")" ] || die "$folder exists and is not empty: name another"
  local running
  running=$(docker compose ps --services --status running) || die "docker compose can't be asked"
  reader=$(grep -xE 'api|worker|upkeep' <<<"$running" | head -n 1) ||
    die "neither api nor worker nor upkeep runs in this project: docker compose up -d"
  umask 077
  mkdir -p "$(dirname "$folder")"
  mkdir "$part" || die "another backup writes $part; if none runs, one was killed: remove that folder"
  trap 'rm -rf "$part"' EXIT
}

main() {
  case ${1:-} in
    -h | --help) usage && exit 0 ;;
    -p) [ $# -ge 3 ] || { usage >&2 && exit 2; }
      export COMPOSE_PROJECT_NAME=$2 && shift 2 ;;
  esac
  case $# in 1) ;; *) usage >&2 && exit 2 ;; esac
  folder=$(realpath --canonicalize-missing "$1") part=$folder.part
  cd "$(dirname "$0")/.."
  prepare
  for attempt in 1 2 3; do
    hold_snapshot
    copy_files && break
    release_snapshot
    [ "$attempt" -lt 3 ] || die "the files can't all be copied: $(cat "$part/missing" 2>/dev/null)"
    say "a file could not be copied; if a model was removed just now, that is well: once more"
    sleep 1
  done
  dump
  release_snapshot
  describe
  [ ! -d "$folder" ] || rmdir "$folder"
  mv --no-target-directory "$part" "$folder"
  echo "$folder holds $(du -sh "$folder" | cut -f1); version $live was live"
}

main "$@"
