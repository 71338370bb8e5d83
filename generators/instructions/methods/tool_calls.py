"""Tool-call conversations, verified in stages (APIGen; Liu et al., 2024, arXiv:2406.18518).

As published: tools are sampled, the model writes a request and the calls that answer it as JSON, and a row must pass
three checks: its form (the tools exist, and the arguments follow each tool's JSON Schema), its execution (the calls run;
here in the sandbox, for tools that come with `python`), and its meaning (the model says whether the calls, and what came
back, serve the request). Tools without code have their result written by the model.

Calls are `tool_calls` of the assistant, results are messages of the role `tool`, and the tools offered stand in the column
`tools`: a model's chat template writes them in its own way (transformers' page "Tool use").
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from engine.text.words import tokens
from generators.drafts.drafts import YES_NO, Draft, Execution, Made, Rejected, ask, assistant, user, whole, yes
from generators.instructions.method import Method, World
from generators.rules.rule import Sandbox
from generators.rules.sandbox.programs import Limits
from generators.text.prompts import Message


class Tool(BaseModel):
    """One tool, as servers declare functions."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    name: str = Field(pattern=r"^[A-Za-z_]\w*$")
    description: str
    parameters: dict[str, Any] = Field(description="JSON Schema of the arguments, an object.")
    python: str | None = Field(None, description="Code that defines a function of this name; its result is the answer.")

    @field_validator("parameters")
    @classmethod
    def _check(cls, value: dict[str, Any]) -> dict[str, Any]:
        from generators.backends.json_answers import checked_schema

        return checked_schema(value)


class ToolCalls(Method):
    """Conversations in which the assistant calls tools."""

    needs: ClassVar[tuple[str, ...]] = ()

    template_variables: ClassVar[dict[str, dict[str, str]]] = {
        "request": {
            "tools": "declarations of the tools, JSON each",
            "count": "the most calls",
            "examples": "requests made before; may be empty",
        },
        "result": {"tool": "the tool: `name`, `description`, `parameters`", "call": "the call, JSON"},
        "serves": {
            "request": "what the user asked",
            "tools": "declarations of the tools, JSON each",
            "calls": "pairs of a call and its result",
        },
        "answer": {"request": "what the user asked", "calls": "pairs of a call and its result"},
    }

    name: Literal["tool_calls"]
    tools: list[Tool] = Field(min_length=1)
    offered: int = Field(3, ge=1, description="Most tools offered in a conversation.")
    calls: int = Field(2, ge=1, description="Most calls in a conversation.")
    sandbox: Sandbox = "whole"

    def draft(self, world: World, number: int) -> Draft:
        from generators.backends.json_answers import problem

        random = world.random(number, "tools")
        most = min(self.offered, len(self.tools))
        size = int(random.integers(1, most + 1))
        tools = [self.tools[i] for i in random.permutation(len(self.tools))[:size].tolist()]
        count = int(random.integers(1, self.calls + 1))
        shown = [
            row["metadata"]["key"] for row in (world.made[i] for i in random.permutation(len(world.made))[:3].tolist())
        ]
        functions = [tool.model_dump(include={"name", "description", "parameters"}) for tool in tools]
        declared = [json.dumps(function) for function in functions]
        answer = yield ask(
            "tool_calls/request", world.sampling, schema_of(tools, count), tools=declared, count=count, examples=shown
        )
        made = json.loads(answer.text)
        request, calls = made["request"].strip(), made["calls"]
        by_name = {tool.name: tool for tool in tools}
        for call in calls:  # the schema has checked the form; a schema may be looser than the tool it belongs to
            if wrong := problem(json.dumps(call["arguments"]), by_name[call["name"]].parameters):
                raise Rejected("invalid_arguments", f"{call['name']}: {wrong}")
        if (count := len(tokens(request))) < 3:
            raise Rejected("empty", f"a request of {count} words")
        if alike := world.known.like(request):
            raise Rejected("not_novel", f"{alike[0]} {alike[2]:.2f} with {alike[1]}")
        results = list[str]()
        for call in calls:
            tool = by_name[call["name"]]
            if tool.python:
                arguments = json.dumps(json.dumps(call["arguments"]))
                limits = Limits(cpu_s=2, wall_s=5)
                last = f"import json\nprint(json.dumps({tool.name}(**json.loads({arguments}))))"
                outcome = yield Execution(f"{tool.python}\n{last}", limits, weaker=self.sandbox == "weaker")
                if not outcome.ok:
                    raise Rejected("execution", f"{call['name']}: {outcome.detail}")
                results.append(outcome.stdout.strip())
            else:
                answer = yield ask("tool_calls/result", world.sampling, tool=tool, call=json.dumps(call))
                results.append(whole(answer))
        paired = [(json.dumps(call), result) for call, result in zip(calls, results, strict=True)]
        certain = replace(world.sampling, temperature=0.0)
        answer = yield ask("tool_calls/serves", certain, YES_NO, request=request, calls=paired, tools=declared)
        if not yes(answer):
            raise Rejected("meaning", f"the calls do not serve: {request[:200]}")
        answer = yield ask("tool_calls/answer", world.sampling, request=request, calls=paired)
        # Nine letters and digits: what the strictest chat template (Mistral's) takes for an id.
        ids = [f"call{place:05d}" for place in range(1, len(calls) + 1)]
        called = [{"id": i, "type": "function", "function": call} for i, call in zip(ids, calls, strict=True)]
        returned: list[Message] = [
            {"role": "tool", "content": result, "tool_call_id": i, "name": call["name"]}
            for i, call, result in zip(ids, calls, results, strict=True)
        ]
        said = [user(request), {**assistant(""), "tool_calls": called}, *returned, assistant(whole(answer))]
        offered = [{"type": "function", "function": function} for function in functions]
        facts = {"tools": [tool.name for tool in tools], "calls": calls}
        return Made(said, request, metadata=facts, tools=offered)


def schema_of(tools: list[Tool], count: int) -> dict[str, Any]:
    """What a request with its calls must look like: each call is one of the tools, with arguments of its schema."""
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": tool.name}, "arguments": tool.parameters},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for tool in tools
    ]
    return {
        "type": "object",
        "properties": {
            "request": {"type": "string"},
            "calls": {"type": "array", "minItems": 1, "maxItems": count, "items": {"anyOf": calls}},
        },
        "required": ["request", "calls"],
        "additionalProperties": False,
    }
