"""The page's values for a state of the migration. Pure: messages of the control API in, plain values out."""
