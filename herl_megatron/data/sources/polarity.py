"""Whether a pitfall's statement being true is good or bad, from its wording alone.

Rubrics as Rewards gives pitfalls negative weights, as if "met" were always bad. Its own texts say
otherwise: most of the medical ones describe the failure ("Does not mention X": met is bad), most of
the scientific ones its avoidance ("Avoids confusing X": met is good). Taken by the sign alone, half
of them would reward the mistake.

Read from the start of the statement, after its subject:
  avoidance                 "Avoids", "should not", "refrains"                     met is good
  an error, denied          "Does not confuse", "never assumes"                    met is good
  something right, denied   "Does not mention", "fails to", "omits"                met is bad
  an error                  "Confuses", "incorrectly", "overlooks"                 met is bad
  an act, stated as such    "Recommends X", "Claims that": named to be punished    met is bad
  anything else, among it "does not recommend X", where X may be right or wrong    unclear

What is left out, or not, may itself be the fault: "does not mention irrelevant findings" is good,
"avoids mentioning the risks" is bad. So where leaving out meets a word of error or excess, or
avoiding meets something right, it is unclear: a criterion less beats one that pays the mistake.
"""

from __future__ import annotations

import re
from typing import Literal

Reading = Literal["met_is_good", "met_is_bad", "unclear"]

_SUBJECT = re.compile(
    r"^(?:the |this |an? )?(?:(?:model'?s? |final |proposed |given )?"
    r"(?:response|answer|model|solution|explanation|output)s? |it )"
)
_DUTY = re.compile(r"^(?:should|must|ought to|needs? to|has to) ")
_DENIAL = re.compile(
    r"^(?:do(?:es)? not|did not|do(?:es)?n't|didn't|is not|isn't|are not|aren't|has not|hasn't|"
    r"cannot|can't|can not|never|not) "
)
_ADVERB = re.compile(r"^(?:explicitly|clearly|fully|properly|adequately|even|simply|merely|also) ")

# "Do not recommend", "Never dismiss", but not "Never mentions", which says what the response does.
_IMPERATIVE = re.compile(r"^(?:do not|don't|never) (?![a-z]+[^s]s\b)")

# Stems of verbs; the ending is free.
_ERRORS = re.compile(
    r"^(?:incorrect|wrong|mistaken|inaccurate|erroneous|false|improper|confus|conflat|mis[a-z]{3}|"
    r"overlook|overstat|oversimplif|exaggerat|contradict|fabricat|hallucinat|mislead|ignor|neglect|"
    r"omit|omission|lack|miss(?:es|ing)\b|fail|underestimat|overestimat|trivializ|dismiss|assum|"
    r"invent|rel(?:y|ies|ying) (?:solely|only)|disregard|skip)"
)
_LEFT_OUT = re.compile(
    r"^(?:overlook|ignor|neglect|omit|omission|lack|miss(?:es|ing)\b|fail|dismiss|disregard|skip|"
    r"underestimat|trivializ)"
)
_FAULTS = re.compile(
    r"\b(?:un(?:necessar|need|relat|support|prov[ea]n|verif|found|warrant|request|solicit|justif|"
    r"substantiat|confirm|import|likel|safe|reliab|scientif|profession|eth|clear|specif|fair|tru)|"
    r"irrelevan|incorrect|inaccura|inappropria|inconsisten|incomplet|invalid|insensitiv|improper|"
    r"implausib|wrong|false|mis[a-z]{4}|mistak|erroneous|errors?\b|flaw|excess|extraneous|extra\b|"
    r"superfluous|redundan|repetit|repeated|needless|tangent|off-topic|digress|filler|padding|"
    r"verbos|speculat|guess|assum|opinion|anecdot|outdated|obsolete|contradict|confusing|ambigu|"
    r"vague|generic|over(?:\b|ly|stat|simpl|confid|empha|general|complic|whelm)|too\b|more than|"
    r"less (?:relevan|import|likel|specif|common|serious|signif)|beyond\b|other than|besides\b|"
    r"aside from|apart from|instead\b|rather than|except\b|without\b|unless\b|only\b|solely\b|"
    r"just\b|alone\b|merely\b|simply\b|minor\b|trivial|distract|harmful|dangerous|risky\b|"
    r"contraindicated|fabricat|invent|hallucinat|made[- ]up|myth|bias|stereotyp|stigmatiz|"
    r"judgmental|offens|blam|alarmis|graphic|jargon|slang|promotional|advert|sensational|"
    r"exaggerat|conspirac|pseudo|baseless|bogus|dubious|questionable|not\b|no\b|never\b|"
    r"cannot\b|non-|any(?:thing)? else|lengthy|long-winded)"
)
"""Words that may make a fault of what a statement speaks of: error, excess, another thing than the
right one, a denial within the denial."""
_MERITS = re.compile(
    r"\b(?:correct|accura|clear|appropriat|relevan|proper|concis|evidence-based|thorough|complet|"
    r"comprehensiv|balanc|necessar|disclaimer|caution|careful|help|support|safe|timely|key\b|"
    r"important|essential|critical)"
)
# Verbs whose "that" may bring a wrong claim as well as a right one, and that may take sides.
_CLAIMS = re.compile(
    r"^(?:(?:stat|show|provid|offer|answer|describ|defin|present|advis|demonstrat|warn|conclud|"
    r"giv|apply|appli|detail|list)[a-z]* (?:[a-z]+ ){0,3}?that\b|support|exclud|link|connect|"
    r"reference|stat(?:e|es|ing)\b|advis|answer)"
)
_RIGHT_ACTS = re.compile(
    r"^(?:mention|includ|address|discuss|explain|consider|identif|specif|recogni[sz]|acknowledg|"
    r"not(?:e|es|ing)\b|describ|emphasi[sz]|clarif|stat(?:e|es|ing)\b|provid|account|distinguish|"
    r"differentiat|highlight|justif|show|verif|defin|cit(?:e|es|ing)\b|list|cover|correctly|"
    r"appl(?:y|ies)|calculat|deriv|answer|support|link|connect|differ|warn|advis|check|rule out|"
    r"exclud|assess|evaluat|compar|outlin|elaborat|detail|name|reference|offer|giv(?:e|es)|"
    r"demonstrat|ensur|connect|stress|present)"
)
_ACTS = re.compile(
    r"^(?:recommend|suggest|stat(?:e|es|ing)\b|claim|assert|us(?:e|es|ing)\b|includ|provid|"
    r"focus|impl(?:y|ies)|treat|attribut|conclud|appl(?:y|ies)|introduc|prescrib|advis|equat|"
    r"over[a-z]{3}|under[a-z]{3}|giv(?:e|es)\b|propos|present|argu|only|solely|merely|diagnos|"
    r"label|identif|rel(?:y|ies)|prioriti[sz]|plac(?:e|es)|add|offer|describ)"
)
_AVOIDS = re.compile(
    r"^(?:avoid(?:s|ing|ed)?|(?:refrain|abstain)(?:s|ing)? from|steer(?:s|ing)? clear of|"
    r"(?:is |be )?careful(?:ly)? (?:not to|to avoid)|be(?:ware of| wary of)) +"
)
_AGAINST = re.compile(r"^(?:caution|warn|advis)[a-z]* (?:[a-z]+ )?against\b")
_SUBJECT_MATTER = re.compile(
    r"^(?:the|any|all|a|an|its|this|that) (?:[a-z]+ )?(?:question|topic|issue|subject|answer|point|"
    r"risk|problem|diagnos|need|discussion|mention)"
)


def read_polarity(statement: str) -> Reading:
    """How a pitfall's statement (without its category prefix) is to be counted."""
    text = re.sub(r"\s+", " ", statement).strip().lower().replace("\u2019", "'")
    ordered = _IMPERATIVE.match(text)  # a statement with a subject is none
    text = _SUBJECT.sub("", text)
    told = _DUTY.match(text)
    text = _DUTY.sub("", text)
    if re.match(r"(?:shouldn't|mustn't) ", text) or (told and text.startswith("not ")):
        return "met_is_good"
    if avoids := _AVOIDS.match(text):
        return _avoided(text[avoids.end() :])
    if ordered:  # "Do not recommend X" says what to avoid, whatever X is.
        return "met_is_good"
    if _AGAINST.match(text):  # a right warning, or a wrong one
        return "unclear"
    denial = _DENIAL.match(text)
    text = _ADVERB.sub("", _DENIAL.sub("", text))
    if denial:
        return _denied(text)
    if _ERRORS.match(text):
        return "unclear" if _LEFT_OUT.match(text) and _is_fault(text) else "met_is_bad"
    if told:
        # "Should mention X": the opposite of a pitfall under a pitfall's heading.
        return "unclear"
    return "met_is_bad" if _ACTS.match(text) and not _MERITS.search(text) else "unclear"


def _denied(text: str) -> Reading:
    """What follows a "does not"."""
    if _ERRORS.match(text):
        return "unclear" if _LEFT_OUT.match(text) and _is_fault(text) else "met_is_good"
    if not _RIGHT_ACTS.match(text) or _CLAIMS.match(text) or _is_fault(text):
        return "unclear"
    return "met_is_bad"


def _avoided(text: str) -> Reading:
    """What follows an "avoids"."""
    if _is_fault(text, whole=True) or _ERRORS.match(text):
        return "unclear" if _LEFT_OUT.match(text) and _is_fault(text) else "met_is_good"
    if _RIGHT_ACTS.match(text) or _SUBJECT_MATTER.match(text) or _MERITS.search(text):
        return "unclear"
    return "met_is_good"


def _is_fault(text: str, *, whole: bool = False) -> bool:
    """Whether a word of error or excess is in the object of `text`, which begins with its verb.

    whole: or in all of it.
    """
    return _FAULTS.search(text if whole else text.partition(" ")[2]) is not None
