"""The one definition of every configuration key."""

from workflow_scripts.settings.load import Experiments, SettingsError, load_experiments
from workflow_scripts.settings.schema import Settings

__all__ = ["Experiments", "Settings", "SettingsError", "load_experiments"]
