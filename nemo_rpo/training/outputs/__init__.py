"""What a run leaves behind: tables, the record, the policy."""
