"""Cluster profiles: the resources of a SLURM array task, one TOML file each.

The packaged ones are starting points; a file of the same name in a folder of the site replaces one,
and one in the user's folder replaces both.
"""

from mlpsubmit.slurm_templates import time_limit
from mlpsubmit.slurm_templates.locate import (
    SITE_FOLDER,
    SITE_VARIABLE,
    find_template,
    read_template,
    template_paths,
    user_folder,
)
from mlpsubmit.slurm_templates.request import SlurmRequest
from mlpsubmit.slurm_templates.template import KEYS, Template

__all__ = [
    "KEYS",
    "SITE_FOLDER",
    "SITE_VARIABLE",
    "SlurmRequest",
    "Template",
    "find_template",
    "read_template",
    "template_paths",
    "time_limit",
    "user_folder",
]
