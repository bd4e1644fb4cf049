"""The layers of a host as pyinfra deploys: site.py lays them all, each file lays its own."""
