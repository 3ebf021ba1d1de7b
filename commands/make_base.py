"""Make a miniature base model: minibase/make.py."""

from minibase.make import main  # noqa: F401
