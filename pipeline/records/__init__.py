"""What a run leaves on storage: commit records, manifests, lease, traces."""
