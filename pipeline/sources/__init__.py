"""Sources of photos: listings and index files to identities, bytes to pixels."""
