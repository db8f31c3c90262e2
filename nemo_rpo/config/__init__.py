"""The run's configuration: one dataclass tree (``schema``) is the only place for defaults; YAML files (``load``) name
what differs.
"""
