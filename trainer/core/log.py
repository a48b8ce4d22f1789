"""One logger for the whole house; `cli` decides where it prints."""

import logging

logger = logging.getLogger("trainer")
