"""Maps between checkpoint layouts: the names and shapes of others on one side, ours on the other.

A layout is a module of four functions on dictionaries. `config_from` and `config_to` map a config.json, `state_from`
and `state_to` the tensors that lie beside it. What one side cannot express is a ValueError that says what it is.
"""
