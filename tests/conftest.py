"""What every test shares: how hard Hypothesis tries, and nothing that opens a file."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# Two slow cores have to finish the suite; no deadline, because a busy machine is not a failure. A failing example is
# printed as code, so that it can be pasted into a test.
_COMMON = settings(deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("quick", _COMMON, max_examples=40)
settings.register_profile("thorough", _COMMON, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))
