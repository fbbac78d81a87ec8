"""Whether a download could work, found out in seconds.

TFDS retries a failing download for minutes before it gives up. Asking first costs one request.
"""

from __future__ import annotations

import contextlib
import http.client
import threading
import urllib.error
import urllib.parse
import urllib.request

# For the whole question, name lookup included, which no socket timeout bounds.
PATIENCE_SECONDS = 5.0
# The server is there but does not answer this kind of request.
_NO_HEAD = (405, 501)


def host(url: str) -> str:
    """Return the host of a URL."""
    return urllib.parse.urlsplit(url).hostname or url


def reachable(url: str, patience: float = PATIENCE_SECONDS) -> bool:
    """Whether the server of `url` would hand it out.

    Args:
        url: str. An address with http or https.
        patience: float > 0. Seconds to wait in all. Defaults to PATIENCE_SECONDS.

    Returns:
        True if it answered in time and did not refuse.
    """
    answered = threading.Event()

    def ask() -> None:
        request = urllib.request.Request(url, method="HEAD")
        try:
            with urllib.request.urlopen(request, timeout=patience):
                answered.set()
        except urllib.error.HTTPError as error:
            if error.code in _NO_HEAD:
                answered.set()
        except (OSError, ValueError, http.client.HTTPException):
            pass

    # A daemon, so that a name server that never answers does not keep the program alive.
    asker = threading.Thread(target=ask, daemon=True)
    with contextlib.suppress(RuntimeError):
        asker.start()
        asker.join(patience)
    return answered.is_set()
