"""Paid model calls: providers, the ledger of receipts, the limit on parallel calls."""
