"""Data sets and what is made of them. Nothing is read, and nothing downloaded, when this is imported."""

from core_model.data.examples import DataSource, Examples
from core_model.data.source import is_user_code, open_source

__all__ = ["DataSource", "Examples", "is_user_code", "open_source"]
