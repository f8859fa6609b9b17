"""Networks that published weights belong to, as torch modules."""
