"""Replies of real runs with hand-given labels; see README.md beside this file."""
