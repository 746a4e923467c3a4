"""Why a log cannot be read, each with the command that mends it."""

import errno
import os
import pwd
from collections.abc import Iterable
from pathlib import Path
from shlex import quote
from shutil import which
from typing import Final

from tailspan.errors import CutError, FormatError, LogError
from tailspan.ingest import shown
from tailspan.ingest.nginx import FORMATS, Format

STDIN: Final = "-"
GZIP: Final = b"\x1f\x8b"
PACKED: Final = {  # how it begins, as its format's specification says → what packed it, and what unpacks it
    b"\xfd7zXZ\0": ("xz", "xzcat"),
    b"BZh": ("bzip2", "bzcat"),
    b"\x28\xb5\x2f\xfd": ("zstd", "zstdcat"),
    GZIP: ("gzip", "zcat"),
}
NAME_IT: Final = (
    "Give the file that has its log_format: --format /etc/nginx/nginx.conf, for the server TAILSPAN_NGINX_FORMAT. "
    "Where that includes others: sudo nginx -T > all.conf"
)
OTHER: Final = (
    f"Look which log_format the access_log of this file names, and give that; {', '.join(FORMATS)} are known without."
)
SHOWN: Final = 40  # bytes of what is no line
OF_LOGS: Final = ("logs", "nginx")  # in the name of a folder that has nothing but logs


def shown_path(path: str | Path) -> str:
    """As a person may be shown it: names are any bytes, and an answer is UTF-8."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def quoted(path: str | Path) -> str:
    """As a command may name it."""
    return quote(shown_path(path))


def cut(path: str, reason: str) -> CutError:
    fix = "It is cut off, or being written; what could be unpacked is read."
    return CutError(f"{shown_path(path)} cannot be unpacked to its end: {reason.rstrip('.')}.", value=reason, fix=fix)


def lineless(path: str, begin: bytes) -> LogError:
    told = f"{shown_path(path)} has no whole line: it begins with {shown(begin[:SHOWN])}."
    return LogError(told, value=path, fix="Where it is no log, move it away.")


def check_file(path: str) -> None:
    """Raises LogError for what cannot be read again from its beginning, or is not there any more."""
    there = Path(path)
    try:
        if path == STDIN or there.is_file() or there.is_dir():
            return
    except OSError as problem:
        raise unreadable(path, problem) from None
    name, linked = shown_path(path), ""
    if there.is_symlink():
        linked = f" links to {shown_path(there.readlink())}, which"
    if there.exists():
        fix = "nginx's image has that: name another file in its access_log. A pipe: zcat FILE | tailspan backfill -"
        raise LogError(f"{name}{linked} is no file.", value=path, fix=fix)
    if linked:
        fix = f"Look for it, and mount it too: ls -l {quoted(path)}"
        raise LogError(f"{name}{linked} is not there.", value=path, fix=fix)


def check_unpacked(path: str, begin: bytes) -> None:
    """Raises LogError, with the command that unpacks it."""
    for magic, (packer, unpacker) in PACKED.items():
        if begin.startswith(magic):
            name, given = ("Standard input", "") if path == STDIN else (shown_path(path), f" {quoted(path)}")
            fix = f"Unpack it, with the same options: {unpacker}{given} | tailspan backfill -"
            raise LogError(f"{name} is packed by {packer}, and not unpacked here.", value=path, fix=fix)


def unreadable(path: str, problem: OSError) -> LogError:
    """What is wrong, and the command that mends it."""
    there = Path(path)
    if isinstance(problem, FileNotFoundError):
        near = next((parent for parent in there.parents if parent.is_dir()), Path("/"))
        mounted = "In a container the log's directory is mounted read-only. " if near == Path("/") else ""
        fix = f"{mounted}Look for it: ls -l {quoted(near)}"
    elif isinstance(problem, NotADirectoryError):
        fix = f"Name the file: {shown_path(next(parent for parent in there.parents if parent.is_file()))}"
    elif isinstance(problem, IsADirectoryError):
        fix = f"Name its files: {quoted(path.rstrip('/'))}/access.log*"
    elif isinstance(problem, PermissionError):
        fix = _may_read(there)
    else:
        fix = "Look at the disk: sudo dmesg | tail"
    return LogError(f"{shown_path(path)} cannot be read: {problem.strerror}.", value=path, fix=fix)


def is_full(folder: Path) -> bool:
    """Whether nobody but root may write there."""
    try:
        disk = os.statvfs(folder)
    except OSError:
        return False
    return disk.f_blocks > 0 and disk.f_bavail == 0


def full_disk(paths: Iterable[str]) -> LogError | None:
    """That logs which lie there are not written now, and what mends it."""
    for folder in {Path(path).parent for path in paths}:
        if is_full(folder):
            told = f"The disk of {shown_path(folder)} is full: nginx does not write down what it sees now."
            look = f"df -h {quoted(folder)}; sudo du -axh {quoted(folder)} | sort -h | tail"
            return LogError(told, fix=f"Make room: {look}")
    return None


def unlisted(pattern: str) -> LogError | None:
    """Why none of that pattern's files may be seen; None where they may, or there is no such folder."""
    if not _closed(folder := Path(pattern).parent) and (not folder.exists() or _allows(folder, os.R_OK | os.X_OK)):
        return None
    return unreadable(pattern, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))


def _allows(path: Path, rights: int) -> bool:
    return os.access(path, rights, effective_ids=True)


def _closed(path: Path) -> Path | None:
    """The first folder on the way there that may not be entered."""
    return next((folder for folder in reversed(path.parents) if folder.exists() and not _allows(folder, os.X_OK)), None)


def _may_read(path: Path) -> str:
    """For a folder of logs by a rule that holds for the files of the next rotation; in others there are secrets."""
    path = Path(os.path.realpath(path))
    folder, who = path.parent, f"u:{_name()}"
    closed = _closed(folder)
    blocked = closed or (path if _allows(folder, os.R_OK | os.X_OK) else folder)
    owner = ""
    try:
        stat = blocked.stat()
        owner = f"It belongs to uid {stat.st_uid}, group {stat.st_gid}; this is uid {os.geteuid()}. "
    except OSError:
        pass
    ways = [f"sudo setfacl -m {who}:x {quoted(closed)}"] if closed else []
    if any(name in part for part in folder.parts for name in OF_LOGS):
        ways.append(f"sudo setfacl -R -m {who}:rX -m d:{who}:rX {quoted(folder)}")
    else:
        ways += [f"sudo setfacl -m {who}:rx {quoted(folder)}"] * (blocked == folder)
        ways += [f"sudo setfacl -m {who}:r {quoted(path)}"]
    return f"{owner}Allow it: {'; '.join(ways)}" + " (it is in the package acl)" * (which("setfacl") is None)


def _name() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def unknown_format(path: str, line: bytes, formats: Iterable[Format]) -> FormatError:
    tried = {form.name: form.text for form in formats}
    told = "\n".join(f"  {name}: {text}" for name, text in tried.items())
    return FormatError(
        f"{shown_path(path)} is in none of these formats:\n{told}\nIts first line: {shown(line)}\n",
        value=path,
        fix=NAME_IT if tried == FORMATS else OTHER,
    )
