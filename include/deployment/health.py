"""Whether an HTTP address answers with success: the health check of a container, which has no curl.

`python -m include.deployment.health URL [PART]` prints nothing and exits with 0 or 1; with a part, such as `scheduler`,
the answer must be Airflow's report of health, and that part healthy. It imports the standard library only.
"""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request

TIMEOUT_S = 8


def answers(url: str, part: str | None = None) -> bool:
    """Whether the address, http or https, answers in time, and well; a proxy is not asked.

    Args:
        url: The address; any answer that is no error will do.
        part: What must be healthy in the answer, as `{"scheduler": {"status": "healthy"}}`.
    """
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=TIMEOUT_S) as response:
            return part is None or json.load(response)[part]["status"] == "healthy"
    except (urllib.error.URLError, TimeoutError, ConnectionError, ValueError, KeyError, TypeError):
        return False


if __name__ == "__main__":
    sys.exit(not answers(*sys.argv[1:]))
