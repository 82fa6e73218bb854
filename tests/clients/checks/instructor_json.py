"""instructor: JSON asked for in words, of a model that was trained to write it; modes that need tools or a grammar are refused by name."""

import json
import os

import instructor
import openai
from pydantic import BaseModel

HERE = {"base_url": os.environ["BASE_URL"], "api_key": os.environ["API_KEY"], "max_retries": 0}
MODEL = openai.OpenAI(**HERE).models.list().data[0].id


class Person(BaseModel):
    name: str
    age: int


for mode, param in ((instructor.Mode.TOOLS, "tools"), (instructor.Mode.JSON, "response_format")):
    client = instructor.from_openai(openai.OpenAI(**HERE), mode=mode)
    said = ""
    try:
        client.chat.completions.create(
            model=MODEL, response_model=Person, messages=[{"role": "user", "content": "王芳30岁。"}], max_retries=0
        )
    except Exception as fault:
        said = str(fault)
    assert f"{param} is not supported by this service" in said, said
    print(f"ok: {mode} is refused, with {param}")

HERE["base_url"] = os.environ["JSON_BASE_URL"]
JSON_MODEL = openai.OpenAI(**HERE).models.list().data[0].id
client = instructor.from_openai(openai.OpenAI(**HERE), mode=instructor.Mode.MD_JSON)
for asked in json.loads(os.environ["JSON_PEOPLE"]):
    person = client.chat.completions.create(
        model=JSON_MODEL,
        response_model=Person,
        messages=[{"role": "user", "content": asked["text"]}],
        temperature=0,
        max_retries=0,
    )
    assert (person.name, person.age) == (asked["name"], asked["age"]), (person, asked)
print(f"ok: Mode.MD_JSON, with {len(json.loads(os.environ['JSON_PEOPLE']))} people it was not trained on")
print(
    "note: `MD_JSON`, of a model of 2 layers that was trained to write JSON; `TOOLS` and `JSON` are refused with `param`"
)
