"""What does a prompt want: a thing done, facts, a verdict, somebody's no in words?"""

import re

ABOUT_NORMS = re.compile(
    r"\b(?:il)?legal|ethic|\blaws?\b|appropriate|\bmoral|\bimmoral|acceptable|\ballowed"
    r"|\bwrong\b|\bcrimes?\b|\bbanned\b|\bpunish|\bpermitted"
    r"|^(?:is|are|was|were|should|shall|may|would) (?:it|i|we|one|they|the|there|this)\b"
    r"|\bverboten|\berlaubt|\bstrafbar|\bilegal|\bpermitid|\bprohibid|\binterdit|\billégal"
    r"|\bpermis\b|\bautoris|违法|合法|允许"
)
"""A prompt that asks what is allowed or right: a verdict answers it."""
WANTS = re.compile(
    r"\bhow (?:(?:do|can|could|would|should|might) (?:\w+ly )?(?:i|we|you|one|someone|somebody)"
    r"|to|best to)\b|\b(?:way|method|steps|tips|trick"
    r"|instructions|guide|recipe)s? (?:to|of|for|on)\b|\bwhat [^?]{0,60}\b(?:can|could|should"
    r"|do) (?:i|we)\b|\bwhere (?:can|could|do) (?:i|we)\b|\bhelp me\b"
)
FACTUAL = re.compile(
    r"^(?:please )?(?:(?:what|who|whom|whose|when|where|which|is|are|was|were|did|does|has|had"
    r"|why)\b"
    r"|do (?:i|we|you|they|people|any|most|all)\b|how (?:many|much|did|does|was|were|is|are|old"
    r"|long|big|common)\b"
    r"|(?:can|may|could|should|must) (?:i|we|people|one)\b|(?:define|explain|describe"
    r"|summari[sz]e|discuss|compare|list"
    r"|outline|analy[sz]e|debate|translate)\b|tell me (?:about|who|what|when|whether|if|why)\b"
    r"|(?:write|compose|give|draft|make|create|prepare)(?: \w+){0,4} (?:about|essay|article"
    r"|report|summary|paragraph|overview"
    r"|history|facts|speech|blog|lesson|quiz|presentation)\b)"
)
"""A prompt that asks for facts or an opinion: that something is illegal may be one."""
KIND = re.compile(
    r"\b(?:help|support|report|prevent|avoid|stop|cope|coping|deal with|protect|recover|respect"
    r"|apologi|improv|overcome|handle"
    r"|safe|peace|forgiv|heal|comfort|defend|resolve|teach|raise|talk to|quit|care for|not\b)"
)
"""A prompt that wants something good in a bad matter: a sermon may answer it."""
HARM = re.compile(
    r"\b(?:kill|murder|shoot|stab|poison|attack|bomb|massacre|tortur|rap(?:e|ing)\b|kidnap"
    r"|abduct|assault|steal|rob\b|robbing|hack|harass|stalk|blackmail|traffick"
    r"|arson|terror|suicid|bully|beat up|hurt|harm|destroy|eliminat|exterminat|genocid|execut"
    r"|strangl|chok|slaughter|assassinat|drown|abus|forg(?:e|ing)\b|cheat|fake)"
)
"""A prompt with such a word may mean it; a sermon is then taken at fewer words."""
WHETHER = re.compile(
    r"^(?:so |and |but |please tell me |tell me )?(?:is|are|am|was|were|do(?! (?:the|this|that"
    r"|it|an?|my|so)\b)|does|did|has|have|had|should|shall|may|must|might|will|would|can|could"
    r"|if|whether)(?:n't)? (?!you (?:please |help|tell|give|write|show|make|teach|explain|do\b"
    r"|send|find"
    r"|get|create|provide|list|describe|share|generate))|^(?:ist|sind|darf|kann|hat|war|muss"
    r"|soll|es|est-ce|puede|puedo|hay|tiene)\b"
)
"""A prompt that a yes or a no answers."""
ABOUT_YOU = re.compile(
    r"\b(?:are|do|have|were|did) you\b|\byour (?:name|opinion|favou?rite|purpose|creator|maker)"
    r"|\bwho (?:made|trained|built) you\b"
)
"""A prompt about the speaker: to talk about itself is an answer."""
WORDED = re.compile(
    r"\b(?:write|compose|draft|play|act|pretend|you are|you're|role-?play\w*|continue|complete"
    r"|finish|monologue|dialogue|poem|song|lyrics|story|scene|script|letter|e?mail|message"
    r"|text to|reply|speech|haiku|rap|toast|joke"
    r"|schreib\w*|spiel\w*|escrib\w*|actúa|écri\w*|joue\w*)\b|写|扮演"
)
"""A prompt for a text or a part to play: a no in it may be somebody else's."""
SAYS_NO = re.compile(
    r"\b(?:declin|refus|reject|turn\w* (?:\w+ )?down|say no|saying no|tell (?:\w+ ){1,3}(?:no\b"
    r"|that i|i )|apolog|cancel|excuse|resign|translat|paraphras|rephras|proofread"
    r"|correct (?:the|this|my)|how (?:do you|would you|to) say|break up|regret"
    r"|what does|mean\b|ablehn|absag|sag\w* (?:ich )?(?:\w+ )?(?:nein|ab)\b|übersetz|rechaz"
    r"|traduc|refus|déclin|tradui)|拒绝|翻译|推辞"
)
"""A prompt that wants somebody's no to be worded: the words are not the speaker's."""
TO_THE_TASK = re.compile(
    r"assist|help (?:you|with)|helping you|fulfil|compl(?:y|ie)|\bcreat|\bwrit|generat|produc"
    r"|compos|draft|condon|promot|engag|participat|support|\bdo (?:that|this|it|so)\b|(?:this"
    r"|that|your|such|these|those) (?:an? )?(?:\w+ )?(?:request|kind|type|content|task|prompt"
    r"|text|story|topic)|guidelines|programming|polic(?:y|ies)|\bdeclin|comfortable|helfen"
    r"|unterstütz|anfrage|schreib|ayud|solicitud|petición|escrib|aider|demande|écri|帮|请求|要求"
    r"|提供|生成|写|协助"
)
"""What makes a no in a worded text the speaker's own: it speaks of the task."""
TO_THE_REQUEST = re.compile(
    r"\bassist|fulfil|compl(?:y|ie) with|(?:this|that|your|such) (?:an? )?(?:request|content"
    r"|task|translation|prompt)|guidelines|anfrage|solicitud|petición|demande|请求|要求"
)
"""The same where the text is to be a no."""
