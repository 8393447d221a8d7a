"""The conversations, modes and control tokens by which renderers of model families are compared with independent ones."""

DATE = "2025-01-01"
MARKS = "⟦⟧"  # around what is trained


def marked(decode, tokens, weights):
    "Text of the tokens with marks around what is trained."
    text, start = "", 0
    while start < len(tokens):
        end = start
        while end < len(tokens) and bool(weights[end]) == bool(weights[start]):
            end += 1
        piece = decode(tokens[start:end])
        text += f"{MARKS[0]}{piece}{MARKS[1]}" if weights[start] else piece
        start = end
    return text


def function(name, description, properties, required):
    parameters = {"type": "object", "properties": properties, "required": required}
    return {
        "type": "function",
        "function": {"name": name, "description": description, "parameters": parameters},
    }


TOOLS = [
    function(
        "get_weather",
        "Weather of a city <now>.",
        {
            "city": {"type": "string", "description": "Which city"},
            "unit": {"type": "string", "enum": ["C", "F"], "default": "C"},
        },
        ["city"],
    ),
    function("add", "Adds two numbers.", {"a": {"type": "integer"}, "b": {"type": "number"}}, ["a", "b"]),
]


def call(number, name, **arguments):
    function = {"name": name, "arguments": arguments}
    return {"type": "function", "id": f"functions.{name}:{number}", "function": function}


def message(role, content, **more):
    return {"role": role, "content": content, **more}


SYSTEM = message("system", "Be brief.")
ASKS = message("user", "2 + 3?")
ASKS_AGAIN = message("user", "And 1 + 1?")
ASKS_WEATHER = message("user", "Weather in Bonn?")
CALLS_ONE = [call(0, "get_weather", city="Bonn")]
CALLS_TWO = [call(1, "add", a=1, b=2.5), call(2, "get_weather", city="Bern", unit="F")]


def result(call, content):
    return message("tool", content, name=call["function"]["name"], tool_call_id=call["id"])


def unnamed(call, content):
    return message("tool", content, tool_call_id=call["id"])


TOOL_LOOP = [
    ASKS_WEATHER,
    message("assistant", "", tool_calls=CALLS_ONE),
    result(CALLS_ONE[0], '{"sky": "clear"}'),
    message("assistant", "It is clear."),
]
PARALLEL = [
    message("user", "Add, and Bern."),
    message("assistant", "I ask both.", tool_calls=CALLS_TWO),
    unnamed(CALLS_TWO[0], "3.5"),
    unnamed(CALLS_TWO[1], "rain"),
    message("assistant", "3.5, and rain."),
]
THINKS = message("assistant", "5", reasoning_content="two and three")
THINKS_AGAIN = message("assistant", "2", reasoning_content="one and one")
THINKING_LOOP = [
    ASKS_WEATHER,
    message("assistant", "", reasoning_content="a tool helps", tool_calls=CALLS_ONE),
    result(CALLS_ONE[0], "clear"),
    message("assistant", "It is clear.", reasoning_content="so it is"),
]
PLAIN = [message("assistant", "5"), message("assistant", "2")]

CASES = {
    "one turn": {"messages": [ASKS, PLAIN[0]]},
    "system": {"messages": [SYSTEM, ASKS, PLAIN[0]]},
    "turns": {"messages": [SYSTEM, ASKS, PLAIN[0], ASKS_AGAIN, PLAIN[1]]},
    "tools": {"messages": TOOL_LOOP, "tools": True},
    "system and tools": {"messages": [SYSTEM, *PARALLEL], "tools": True},
    "calls, undeclared": {"messages": [*TOOL_LOOP, ASKS_AGAIN, PLAIN[1]]},
    "thinking": {"messages": [SYSTEM, ASKS, THINKS]},
    "thinking, turns": {"messages": [ASKS, THINKS, ASKS_AGAIN, THINKS_AGAIN], "last_turn": True},
    "thinking and tools": {"messages": THINKING_LOOP, "tools": True},
    "thinking, tools, turns": {
        "messages": [*THINKING_LOOP, ASKS_AGAIN, THINKS_AGAIN],
        "tools": True,
        "last_turn": True,
    },
}

QWEN = [
    "<|endoftext|>",
    "<|im_end|>",
    "<|im_start|>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
]
SEES = [
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]  # of models that see: not written without images
THINK = ["<think>", "</think>"]
CONTROL_TOKENS = {
    "qwen3": [*QWEN, *THINK, *SEES],
    "deepseek": [
        "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>",
        "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>",
        "<｜tool▁outputs▁begin｜>", "<｜tool▁outputs▁end｜>", "<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>", "｜DSML｜",
        "<｜latest_reminder｜>", "<｜action｜>", "<｜query｜>", "<｜authority｜>", "<｜domain｜>", "<｜title｜>", "<｜read_url｜>",
        "<｜System｜>", "<｜Tool｜>", "<｜Developer｜>",
        *THINK,
    ],  # fmt: skip
    "kimi": [
        "[BOS]", "[EOS]", "<|im_end|>", "<|im_user|>", "<|im_assistant|>", "<|im_system|>", "<|im_middle|>",
        "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>", "<|tool_call_begin|>", "<|tool_call_argument_begin|>",
        "<|tool_call_end|>", "<|media_begin|>", "<|media_content|>", "<|media_end|>", "<|media_pad|>", *THINK,
    ],  # fmt: skip
    "glm": [
        "[gMASK]", "<|endoftext|>", "<sop>", "<eop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>",
        "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<arg_key>", "</arg_key>", "<arg_value>",
        "</arg_value>", "/nothink", *THINK,
    ],  # fmt: skip
    "gpt_oss": [
        "<|startoftext|>", "<|return|>", "<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|call|>",
        "<|endoftext|>",
    ],  # fmt: skip
    "llama3": [
        "<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|python_tag|>",
        "<|end_of_text|>",
    ],  # fmt: skip
    "gemma": ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"],
    "mistral": [
        "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]", "[TOOL_RESULTS]",
        "[/TOOL_RESULTS]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[ARGS]", "[CALL_ID]", "[THINK]", "[/THINK]",
        "[TOOL_CONTENT]",
    ],  # fmt: skip
}  # fmt: skip

OFF = {"enable_thinking": False}
# a mode of a family: kitchen's renderer and its chat_template_kwargs, and what each oracle calls it
MODES = {
    "qwen3": {
        "family": "qwen3", "ours": ("qwen3", {}), "cookbook": "qwen3", "prime": ("qwen3", {}), "tml": ("Qwen3", {}),
        "template": ("qwen3", {}), "trl": ("qwen3", {}),
    },
    "qwen3, thinking off": {
        "family": "qwen3", "ours": ("qwen3", OFF), "cookbook": "qwen3_disable_thinking", "prime": ("qwen3", OFF),
        "template": ("qwen3", OFF),
    },
    "qwen3 instruct 2507": {
        "family": "qwen3", "ours": ("qwen3_instruct", {}), "cookbook": "qwen3_instruct",
        "template": ("qwen3_instruct_2507", {}), "trl": ("qwen3_instruct_2507", {}),
    },
    "qwen3.5": {
        "family": "qwen3", "ours": ("qwen3_5", {}), "cookbook": "qwen3_5", "prime": ("qwen3.5", {"enable_thinking": True}),
        "tml": ("Qwen35", {}), "template": ("qwen3_5_think", {}), "trl": ("qwen3_5_think", {}),
    },
    "qwen3.5, thinking off": {
        "family": "qwen3", "ours": ("qwen3_5", OFF), "cookbook": "qwen3_5_disable_thinking", "prime": ("qwen3.5", OFF),
        "template": ("qwen3_5_think", OFF), "trl": ("qwen3_5_think", OFF),
    },
    "qwen3.6": {
        "family": "qwen3", "ours": ("qwen3_6", {}), "cookbook": "qwen3_5", "prime": ("qwen3.6", {}),
        "template": ("qwen3_6", {}), "trl": ("qwen3_6", {}),
    },
    "qwen3.8": {
        "family": "qwen3", "ours": ("qwen3_8", {}), "cookbook": "qwen3_8_xhigh_reasoning", "prime": ("qwen3.8", {}), "tml": ("Qwen38", {}),
        "template": ("qwen3_8", {}), "trl": ("qwen3_8", {}),
    },
    "qwen3.8, low": {
        "family": "qwen3", "ours": ("qwen3_8", {"reasoning_effort": "low"}), "cookbook": "qwen3_8_low_reasoning",
        "prime": ("qwen3.8", {"reasoning_effort": "low"}), "template": ("qwen3_8", {"reasoning_effort": "low"}),
    },
    "qwen3.8, thinking off": {
        "family": "qwen3", "ours": ("qwen3_8", OFF), "cookbook": "qwen3_8_disable_thinking", "prime": ("qwen3.8", OFF),
        "template": ("qwen3_8", OFF),
    },
    "nemotron 3": {
        "family": "qwen3", "ours": ("nemotron3", {}), "cookbook": "nemotron3", "prime": ("nemotron-3", {}), "tml": ("Nemotron3", {}),
        "template": ("nemotron_3_nano", {}), "trl": ("nemotron_3_nano", {}),
    },
    "nemotron 3, thinking off": {
        "family": "qwen3", "ours": ("nemotron3", OFF), "cookbook": "nemotron3_disable_thinking", "prime": ("nemotron-3", OFF),
        "template": ("nemotron_3_nano", OFF),
    },
    "nemotron 3 super, low": {
        "family": "qwen3", "ours": ("nemotron3", {"low_effort": True}), "cookbook": "nemotron3_low_thinking",
        "prime": ("nemotron-3", {"low_effort": True}), "template": ("nemotron_3_super", {"low_effort": True}),
    },
    "nemotron 3 ultra": {
        "family": "qwen3", "ours": ("nemotron3_ultra", {}), "cookbook": "nemotron3_ultra", "prime": ("nemotron-3-ultra", {}),
        "template": ("nemotron_3_ultra", {}), "trl": ("nemotron_3_ultra", {}),
    },
    "nemotron 3 ultra, thinking off": {
        "family": "qwen3", "ours": ("nemotron3_ultra", OFF), "cookbook": "nemotron3_ultra_disable_thinking",
        "prime": ("nemotron-3-ultra", OFF), "template": ("nemotron_3_ultra", OFF),
    },
    "nemotron 3 ultra, medium": {
        "family": "qwen3", "ours": ("nemotron3_ultra", {"medium_effort": True}), "cookbook": "nemotron3_ultra_medium_thinking",
        "prime": ("nemotron-3-ultra", {"medium_effort": True}), "template": ("nemotron_3_ultra", {"medium_effort": True}),
    },
    "deepseek v3.1": {
        "family": "deepseek", "ours": ("deepseekv3", {}), "cookbook": "deepseekv3",
        "tml": ("DeepSeekV31", {}),
    },
    "deepseek v3.1, thinking": {
        "family": "deepseek", "ours": ("deepseekv3", {"thinking": True}), "cookbook": "deepseekv3_thinking",
        "tml": ("DeepSeekV31", {"thinking": True}),
    },
    "deepseek v3": {
        "family": "deepseek", "ours": ("deepseekv3_0324", {}), "prime": ("deepseek-v3", {}), "tml": ("DeepSeekV3", {}),
        "template": ("deepseekv3", {}), "trl": ("deepseekv3", {}),
    },
    "deepseek r1": {
        "family": "deepseek", "ours": ("deepseek_r1", {}), "prime": ("deepseek-r1", {}), "tml": ("DeepSeekR1", {}),
        "template": ("deepseek_r1_distill", {}), "trl": ("deepseek_r1_distill", {}),
    },
    "deepseek v4": {
        "family": "deepseek", "ours": ("deepseekv4", {"thinking_mode": "chat"}), "prime": ("deepseek-v4", {}),
        "tml": ("DeepSeekV4", {"thinking_mode": "chat"}),
    },
    "deepseek v4, thinking": {
        "family": "deepseek", "ours": ("deepseekv4", {}), "prime": ("deepseek-v4", {"enable_thinking": True}),
        "tml": ("DeepSeekV4", {}),
    },
    "deepseek v4.1": {
        "family": "deepseek", "ours": ("deepseekv4_1", {}), "cookbook": "deepseekv4_1", "tml": ("DeepSeekV41", {}),
    },
    "deepseek v4.1, chat": {
        "family": "deepseek", "ours": ("deepseekv4_1", {"thinking_mode": "chat"}), "cookbook": "deepseekv4_1_disable_thinking",
        "tml": ("DeepSeekV41", {"thinking_mode": "chat"}),
    },
    "kimi k2": {
        "family": "kimi", "ours": ("kimi_k2", {}), "cookbook": "kimi_k2", "tml": ("KimiK2", {}),
    },
    "kimi k2 instruct": {"family": "kimi", "ours": ("kimi_k2_instruct", {}), "prime": ("kimi-k2", {})},
    "kimi k2.5": {
        "family": "kimi", "ours": ("kimi_k25", {}), "cookbook": "kimi_k25", "prime": ("kimi-k2.5", {}), "tml": ("KimiK25", {}),
    },
    "kimi k2.5, thinking off": {
        "family": "kimi", "ours": ("kimi_k25", {"thinking": False}), "cookbook": "kimi_k25_disable_thinking",
        "prime": ("kimi-k2.5", {"thinking": False}),
    },
    "kimi k2.6, thinking preserved": {
        "family": "kimi", "ours": ("kimi_k26", {"preserve_thinking": True}), "cookbook": "kimi_k26_preserve_thinking",
    },
    "glm 4.5": {
        "family": "glm", "ours": ("glm4_5", {}), "prime": ("glm-4.5", {}), "template": ("glm4moe", {}), "trl": ("glm4moe", {}),
    },
    "glm 4.5, thinking off": {
        "family": "glm", "ours": ("glm4_5", OFF), "prime": ("glm-4.5", OFF), "template": ("glm4moe", OFF), "trl": ("glm4moe", OFF),
    },
    "glm 5": {"family": "glm", "ours": ("glm5", {}), "prime": ("glm-5", {})},
    "glm 5, thinking off": {"family": "glm", "ours": ("glm5", OFF), "prime": ("glm-5", OFF)},
    "glm 5.1": {"family": "glm", "ours": ("glm5_1", {}), "prime": ("glm-5.1", {})},
    "glm 5.2": {"family": "glm", "ours": ("glm5_2", {}), "tml": ("Glm52", {})},
    "glm 5.3": {
        "family": "glm", "ours": ("glm5_3", {}), "cookbook": "glm5_3_max_reasoning", "prime": ("glm-5.3", {}),
        "tml": ("Glm53", {"clear_thinking": False}),
    },
    "glm 5.3, low": {
        "family": "glm", "ours": ("glm5_3", {"reasoning_effort": "low"}), "cookbook": "glm5_3_low_reasoning",
        "prime": ("glm-5.3", {"reasoning_effort": "low"}), "tml": ("Glm53", {"reasoning_effort": "low", "clear_thinking": False}),
    },
    "gpt-oss, medium": {
        "family": "gpt_oss", "ours": ("gpt_oss", {"current_date": DATE}), "cookbook": "gpt_oss_medium_reasoning",
        "prime": ("gpt-oss", {"conversation_start_date": DATE}), "tml": ("GptOss", {"current_date": DATE}),
        "template": ("gptoss", {}), "trl": ("gptoss", {}),
    },
    "gpt-oss, high": {
        "family": "gpt_oss", "ours": ("gpt_oss", {"reasoning_effort": "high", "current_date": DATE}),
        "cookbook": "gpt_oss_high_reasoning",
        "prime": ("gpt-oss", {"reasoning_effort": "high", "conversation_start_date": DATE}),
        "template": ("gptoss", {"reasoning_effort": "high"}),
    },
    "llama 3": {
        "family": "llama3", "ours": ("llama3", {}), "cookbook": "llama3", "template": ("llama3", {}), "trl": ("llama3", {}),
    },
    "llama 3.1": {
        "family": "llama3", "ours": ("llama3_1", {}), "prime": ("llama-3", {}), "template": ("llama3_1", {}),
    },
    "gemma 3": {"family": "gemma", "ours": ("gemma3", {}), "template": ("gemma3", {}), "trl": ("gemma3", {})},
    "mistral v3": {"family": "mistral", "ours": ("mistral_v3", {}), "common": "v3"},
    "mistral v3, tekken": {
        "family": "mistral", "ours": ("mistral_v3_tekken", {}), "common": "v3 tekken", "template": ("mistral_nemo", {}),
    },
    "mistral v7": {"family": "mistral", "ours": ("mistral_v7", {}), "common": "v7"},
    "mistral v7, tekken": {"family": "mistral", "ours": ("mistral_v7_tekken", {}), "common": "v7 tekken"},
    "mistral v11": {"family": "mistral", "ours": ("mistral_v11", {}), "common": "v11 tekken"},
    "mistral v13": {"family": "mistral", "ours": ("mistral_v13", {}), "common": "v13 tekken"},
    "role and colon": {"family": "llama3", "ours": ("role_colon", {}), "cookbook": "role_colon"},
}  # fmt: skip
