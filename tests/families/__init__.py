"""Every family with every task, method and ZeRO stage: the cases, what each goes through, the page of what passed."""
