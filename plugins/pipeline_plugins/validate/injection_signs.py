"""What attempts to take a model over say: signs with their weights, as patterns for RE2."""

from __future__ import annotations

EARLIER = (
    r"(?:previous|prior|above|earlier|preceding|former|initial|original|existing|system|your|all|any|these|"
    r"those|everything)"
)
RULES = (
    r"(?:instructions?|prompts?|rules?|directions?|directives?|guidelines?|commands?|orders?|context|"
    r"messages?|training|programming|polic(?:y|ies)|restrictions?|safeguards?)"
)
DROP = (
    r"(?:ignore|disregard|forget|override|bypass|discard|do not follow|don't follow|stop following|"
    r"pay no attention to|set aside)"
)
TELL = (
    r"(?:reveal|show|print|repeat|output|tell me|display|leak|give me|what (?:is|are|was|were)|copy|"
    r"summari[sz]e|translate)"
)
HIDDEN = (
    r"(?:system (?:prompt|message)|(?:initial|hidden|original|secret) (?:prompt|instructions)|"
    r"(?:prompt|instructions|text|words) above)"
)
PLAY = r"(?:act|pretend|play|be|become|simulate)"
FREE = r"(?:no|without|any|free (?:of|from)|not bound by|bypass|ignore|regardless of|unconstrained by|lacks?)"
BOUNDS = (
    r"(?:restrictions?|limitations?|filters?|censorship|ethical|ethics|moral(?:s|ity)?|guidelines|"
    r"(?:content|openai'?s?) polic(?:y|ies)|safety)"
)
ANSWER = r"(?:response|answer|ai|chatbot|assistant|model|language|bot|character|advice|content)\w{0,2}"
REFUSE = (
    r"(?:refuse|decline|deny|apologi[sz]e|say (?:that )?you can(?:'t|not)|mention that you are an ai|warn|"
    r"disclaimers?)"
)
MACHINE = r"(?:ai|llm|language model|chatbot|assistant|gpt|claude|gemini)s?"

SIGNS: dict[str, tuple[float, list[str]]] = {
    "sets earlier instructions aside": (
        1.0,
        [
            rf"\b{DROP}\b.{{0,40}}\b{EARLIER}\b.{{0,30}}\b{RULES}\b",
            rf"\b{DROP}\b.{{0,20}}\b{RULES} (?:above|before|so far|(?:that )?you (?:were|have))\b",
            r"\b(?:ignore|disregard|forget) (?:everything|all|anything)\b.{0,30}"
            r"\b(?:above|before|previous|prior|earlier|so far|told|said)\b",
            r"\bignorier\w{0,3}\b.{0,40}\b(?:anweisung|vorherig|bisherig|obig|regel)",
            r"\b(?:ignore[zr]?|oublie[zr]?)\b.{0,40}\b(?:instructions|consignes|directives|règles)\b",
            r"\b(?:ignor[ae]|olvida|ignori|dimentica)\b.{0,40}"
            r"\b(?:instrucciones|instruções|istruzioni|reglas)\b",
            r"(?:忽略|无视|忘记).{0,12}(?:指令|指示|说明|规则|提示)",
        ],
    ),
    "asks for the hidden prompt": (
        0.8,
        [rf"\b{TELL}\b.{{0,30}}\b(?:your|the|its|all)\b.{{0,20}}\b{HIDDEN}\b"],
    ),
    "gives the model another role": (
        0.6,
        [
            rf"\b(?:you are (?:now )?(?:going to )?{PLAY}|you will (?:now )?{PLAY}|from now on,? you|"
            r"act as (?:an? )?(?:unrestricted|uncensored|unfiltered|evil|amoral|jailbroken|rogue)|"
            r"pretend (?:to be|that you|you are)|immerse yourself|stay in character|break character|"
            r"stop being|you are no longer)\b",
            r"\byou are now (?:an? |the |in )?\w",
        ],
    ),
    "talks of a model without rules": (
        0.7,
        [
            r"\b(?:do anything now|jailbr(?:eak|oken)\w{0,3}|(?:developer|dan|god|dev|opposite) mode)\b",
            rf"\b{FREE}\b.{{0,30}}\b{BOUNDS}\b",
            rf"\b(?:unfiltered|uncensored|unrestricted|amoral|unethical)\b.{{0,40}}\b{ANSWER}\b",
            rf"\b(?:never|not|don't|cannot|can't)\b.{{0,30}}\b{REFUSE}\b",
        ],
    ),
    "imitates the format of a conversation": (
        0.8,
        [
            r"<\|(?:im_start|im_end|system|user|assistant|endoftext|eot_id|start_header_id)\|>",
            r"\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>",
            r"(?:^|\n)\s{0,4}(?:#{1,4} ?|\[|\*\*)(?:system|new instructions?|admin|developer)"
            r"(?: (?:prompt|message|note|override|instructions?))?(?:\]|\*\*)? ?:",
        ],
    ),
    "sends data out by a link": (
        0.8,
        [
            r"!\[[^\]\n]{0,200}\]\(\s{0,4}https?://[^)\s]{1,500}[?&][^)\s]{0,500}=",
            r"\b(?:append|include|encode|put)\b.{0,60}\b(?:url|link|query string|image)\b.{0,60}"
            r"\b(?:https?://|base64|parameter)",
        ],
    ),
    "addresses the machine that reads it": (
        0.6,
        [
            r"\b(?:attention|note|message|instructions?|dear|hey|important)\b.{0,12}\b(?:for|to)?\b.{0,12}"
            rf"\b{MACHINE}\b",
            rf"\b{MACHINE}\b.{{0,30}}\b(?:must|should|shall|needs? to|has to|will now)\b",
            r"\bwhen (?:you |the (?:ai|assistant|model) )?(?:summari[sz]|answer|respond|repl|process|read)"
            r"\w{0,4}\b.{0,40}\b(?:always|must|only|instead|include|add|recommend|say)\b",
        ],
    ),
}
"""What is said, how much it weighs, and patterns for it in any case."""

ONLY_RETRIEVED = frozenset({"addresses the machine that reads it"})
"""Signs that mean nothing in a user's message, who does address the machine."""
