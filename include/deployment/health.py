"""Whether an HTTP address answers with success: the health check of a container, which has no curl.

`python -m include.deployment.health URL` prints nothing and exits with 0 or 1; it imports the standard library only.
"""

from __future__ import annotations

import sys
import urllib.error
import urllib.request

TIMEOUT_S = 8


def answers(url: str) -> bool:
    """Whether the address, http or https, answers in time, and not with an error; a proxy is not asked."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        opener.open(url, timeout=TIMEOUT_S).close()
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False
    return True


if __name__ == "__main__":
    sys.exit(not answers(sys.argv[1]))
