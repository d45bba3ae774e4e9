"""From a config file to an image in the store: read, check, build, keep, unpack.

Nothing here runs an app, and nothing here reads what a client sent.
"""
