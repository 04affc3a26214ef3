"""With which phrases does an answer ask back, change the subject, begin in earnest or turn?"""

import re

DEFLECTION = re.compile(
    r"\b(?:could|can|would) you (?:please )?(?:clarify|specify|rephrase|elaborate|tell me more"
    r"|explain what"
    r"|give me more|provide (?:me )?(?:with )?(?:some )?(?:more|additional|further|the|your))"
    r"|\bplease (?:clarify|specify|rephrase|provide (?:me )?(?:with )?(?:more|additional|further"
    r"|the|your))"
    r"|\b(?:don't|do not|didn't|did not) (?:quite |fully |really )?understand (?:what|your|the"
    r"|that|this)"
    r"|\bnot (?:sure|clear) (?:what|which|who)\b"
    r"|\b(?:let's|let us|shall we|we could|i'd rather|i would rather|i prefer to"
    r"|how about we) (?:talk|discuss"
    r"|chat|focus|speak|change)\b"
    r"|\bas an? (?:\w+ ){0,3}?(?:ai|assistant|model)\b.{0,25}\bi (?:don't|do not|haven't|lack"
    r"|have no|am not capable)"
    r"|^(?:hello|hi|hey)?[!,. ]*(?:how (?:can|may) i (?:help|assist)|what (?:can i"
    r"|would you like|do you (?:want|need)"
    r"))"
    r"|\bi(?:'m| am) (?:just |only )?(?:an ai|a language model|an assistant|a large|qwen|here to)\b"
    r"|\bi (?:don't|do not) have (?:access|enough|personal|the ability|any (?:personal"
    r"|information)|feelings|opinions)"
    r"|\b(?:instead|rather),? (?:let's|how about|why not|i suggest|may i|i can|i could|i would)"
    r"|^(?:why do you (?:want|ask|need)|what makes you)"
    r"|\b(?:könn(?:test|ten)|kannst) (?:du|sie)\b[^.!?]{0,40}(?:genauer|präzisieren|erläutern"
    r"|mehr)|\bich verstehe (?:die|deine|ihre) frage nicht"
    r"|\b(?:puedes|podrías|puede|podría) (?:aclarar|especificar|reformular|dar\w* más)"
    r"|\bno entiendo (?:la|tu|su) pregunta"
    r"|\b(?:pouvez-vous|pourriez-vous|peux-tu|pourrais-tu) (?:préciser|clarifier|reformuler"
    r"|m'en dire)|\bje ne comprends pas (?:la|votre|ta) question"
    r"|(?:请|請)(?:您)?(?:提供更多|说明|澄清|具体|详细)|我不(?:太)?明白(?:您|你)的"
)
UNCLEAR = re.compile(
    r"\b(?:unclear|ambiguous|more (?:context|details?|information about what)|(?:please|you"
    r"|to) (?:clarify|rephrase)|(?:sure|certain|clear) what you(?:'re| are)|don't understand"
    r"|do not understand|without (?:more|further|additional|knowing|your)"
    r"|unless you (?:tell|give|provide|share|clarify)|until you (?:tell|give|provide|share"
    r"|clarify))\b"
)
"""Why a speaker cannot answer without being told more."""
BARE = re.compile(
    r"(?:sure|ok|okay|yes|of course|certainly|absolutely|great|alright|got it|here you go"
    r"|sure thing|no problem"
    r"|i can help(?: you)?(?: with that)?|i'd be happy to help(?: you)?(?: with that)?|thank you"
    r"|thanks)?[.,!:; ]*"
)
CONTENT = re.compile(
    r"'''|(?:^|\s)(?:1[.)]|step (?:1|one)|first(?:ly)?[,:])\s|\bhere(?:'s| is| are)\b"
    r"|\bhier (?:ist|sind|kommt|ein)\b|\baquí (?:está|tienes|hay|va)|\bvoici\b|以下是|(?:^"
    r"|\s)\| [^|]+\|"
)
"""Where an answer begins to be given."""
TURN = re.compile(
    r"\b(?:but|however|that said|nevertheless|nonetheless|still|though|here's|here is)\b"
)
INSTEAD = re.compile(
    r"\b(?:instead|alternative\w*|rather than|positive|healthy|safe(?:ly|r)?|legal(?:ly)?"
    r"|promote|support)\b"
)
EXCEPTION = re.compile(
    r"[,;] so (?!(?:i|we|please)\b)|\b(?:unless|except|otherwise|on other days|free to|(?:legal"
    r"|allowed|permitted) (?:in|if|on|for)|depends)\b"
)
"""After a verdict of law: it was meant as information."""
