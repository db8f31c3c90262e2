"""From YAML files and overrides to one tree of settings in which every key is accounted for."""
