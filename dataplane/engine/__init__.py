"""The engine as Python sees it: the only package that touches the C library.

Thin by rule: it turns results into exceptions or enums and pointers into objects that are closed,
and never decides anything.
"""
