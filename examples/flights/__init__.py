"""The demo: real flights, daily partitions, a monthly roll-up."""
