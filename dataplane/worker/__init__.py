"""A worker: one process of one generation, sealed, with the engine in it; and the zygote it is
forked from. It serves, gives its connections away, and ends; nothing else can be asked of it.
"""
