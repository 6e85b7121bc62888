"""Functions over many tasks, on Ray.

Ray reads the variables below when it is imported, and this file runs before the imports of this room.
"""

import os
import secrets

# No usage reports; Ray's own warning about GPUs is not for our users.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
if not os.environ.get("RAY_ADDRESS") and "RAY_AUTH_MODE" not in os.environ:
    # The local Ray asks for a token of this process's own. By default Ray writes one to the home folder, and
    # every cluster that is started there later would ask for it.
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
