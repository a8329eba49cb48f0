"""From listings and index files to identities, from bytes to pixels."""
