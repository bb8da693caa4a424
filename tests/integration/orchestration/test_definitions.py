"""The code location as Dagster sees it: it loads, it is the committed graph, and each asset says what it is."""

import difflib
import subprocess
import sys
import warnings
from pathlib import Path

import dagster as dg
import pytest
from graph_text import graph_text
