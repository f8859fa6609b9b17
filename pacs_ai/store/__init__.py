"""The stations: index, jobs and outbox in one database, with the files beside it."""
