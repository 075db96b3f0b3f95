"""Who may connect: tokens, read from a file once and compared without telling how near a guess was."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fastio.errors import ErrorKind, RequestError

__all__ = ["Credentials", "read_tokens"]


@dataclass(frozen=True)
class Credentials:
    """The tokens that are let in, by name. Without any, everyone is.

    >>> guarded = Credentials({"alice": "s3cret"})
    >>> guarded
    Credentials(1 token)
    >>> guarded.name_of("s3cret"), guarded.name_of("guess"), guarded.name_of(None)
    ('alice', None, None)
    >>> Credentials().name_of(None)
    'anyone'
    """

    tokens: Mapping[str, str] = field(default_factory=dict)

    def name_of(self, token: str | None) -> str | None:
        """Under which name ``token`` is let in; None if it is not."""
        if not self.tokens:
            return "anyone"
        given = (token or "").encode()
        found = None
        # No early exit: the time taken must not tell which token a guess resembles.
        for name, wanted in self.tokens.items():
            if hmac.compare_digest(given, wanted.encode()):
                found = name
        return found

    def __repr__(self) -> str:
        return f"Credentials({len(self.tokens)} token{'' if len(self.tokens) == 1 else 's'})"


def read_tokens(path: Path) -> Credentials:
    """Reads a token file: a line is ``name:token`` or a bare token; blank lines and lines with ``#`` first are skipped.

    Raises:
        RequestError: the file can't be read, holds no token, or gives a name twice.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise _bad(f"token file {path}: can't be read: {reason}") from None
    tokens: dict[str, str] = {}
    for number, line in enumerate((line.strip() for line in lines), start=1):
        if not line or line.startswith("#"):
            continue
        name, colon, token = line.partition(":")
        if not colon:
            name, token = f"line {number}", line
        if not name.strip() or not token.strip():
            raise _bad(f"token file {path}, line {number}: wanted name:token or a bare token")
        if name.strip() in tokens:
            raise _bad(f"token file {path}, line {number}: the name {name.strip()!r} was given before")
        tokens[name.strip()] = token.strip()
    if not tokens:
        raise _bad(f"token file {path} holds no token; wanted one name:token a line")
    return Credentials(tokens)


def _bad(message: str) -> RequestError:
    return RequestError(message, kind=ErrorKind.BAD_CONFIG)
