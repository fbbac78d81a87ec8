"""Find out within seconds whether a download could work.

TFDS retries a failing download for minutes before it gives up. Asking first costs one request.
"""

from __future__ import annotations

import contextlib
import http.client
import threading
import urllib.error
import urllib.parse
import urllib.request

# The limit for the whole request. It includes the name lookup, which no socket timeout bounds.
PATIENCE_SECONDS = 5.0
# With these codes a server answers that it does not support HEAD requests.
_NO_HEAD = (405, 501)


def host(url: str) -> str:
    """Return the host of a URL."""
    return urllib.parse.urlsplit(url).hostname or url


def reachable(url: str, patience: float = PATIENCE_SECONDS) -> bool:
    """Return whether the server of `url` answers and would deliver it.

    Args:
        url: str. An address with http or https.
        patience: float > 0. Seconds to wait in all. Defaults to PATIENCE_SECONDS.

    Returns:
        True if the server answered in time and did not refuse.
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

    # A daemon thread, so that a name server that never answers does not keep the program alive.
    asker = threading.Thread(target=ask, daemon=True)
    with contextlib.suppress(RuntimeError):
        asker.start()
        asker.join(patience)
    return answered.is_set()
