"""The controller's side of drover: fleet variables, inventories, versions and the `drover` command."""
