"""instructor: the modes that ask for tools or a JSON grammar are refused with the field's name."""

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
