"""Methods that apply a stored chat template by its name."""


def with_tools(self, conversation, tools: list[dict], **options):
    """`apply_chat_template` with the template "tool_use"."""
    return self.apply_chat_template(conversation, chat_template="tool_use", tools=tools, **options)


def grounded(self, conversation, documents: list[dict], citation_mode: str = "accurate", **options):
    """`apply_chat_template` with the template "rag", documents and how they are cited ("accurate" or
    "fast").
    """
    return self.apply_chat_template(
        conversation, chat_template="rag", documents=documents, citation_mode=citation_mode, **options
    )
