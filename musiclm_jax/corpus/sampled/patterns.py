"""Rhythms of the band, a string for a bar with a character for a sixteenth. Bars of 4/4 have 16, of 3/4 and 6/8 12. "-" continues a note, "." is silent.

Chords: c all notes, l the lowest, u all but the lowest, 0 to 7 one of them counted from below, and on in the next octave.
Bass: r root, f fifth, o the root an octave above, t third, a the note that leads to the next chord's root, w a note of a walking line.
Drums: x played, X with an accent, g a ghost note.
"""

COMPS = {
    "held": {"4/4": ("c---------------",), "3/4": ("c-----------",), "6/8": ("c-----------",)},
    "halves": {"4/4": ("c-------c-------", "c-------u---u---"), "3/4": ("c-------u---", "c-----------"), "6/8": ("c-----c-----", "c-----u---u-")},
    "beats": {"4/4": ("c---c---c---c---", "l---u---u---u---"), "3/4": ("c---c---c---", "l---u---u---"), "6/8": ("c---u-c---u-",)},
    "broken": {
        "4/4": ("0-1-2-3-4-3-2-1-", "0-1-2-3-2-1-2-1-", "0---1---2---1---"),
        "3/4": ("0-1-2-3-2-1-", "0---1---2---", "0-2-3-4-3-2-"),
        "6/8": ("0-1-2-3-2-1-", "0-2-3-4-3-2-"),
    },
    "rolling": {
        "4/4": ("0-2-1-2-3-2-1-2-", "0-1-2-4-3-2-1-2-", "0123432101234321"),
        "3/4": ("0-1-2-3-4-3-", "0-2-4-2-3-1-"),
        "6/8": ("0-1-2-0-1-2-", "0-2-4-3-2-1-", "012343210123"),
    },
    "alberti": {"4/4": ("0-2-1-2-0-2-1-2-", "0-2-1-2-0-2-1-2-"), "3/4": ("0-2-1-2-1-2-", "0-2-1-2-3-2-"), "6/8": ("0-2-1-0-2-1-",)},
    "oompah": {"4/4": ("l---u---l---u---", "l-..u-..l-..u-u-"), "3/4": ("l---u---u---", "l-..u-..u-.."), "6/8": ("l-..u-l-..u-", "l---u-l---u-")},
    "strum": {
        "4/4": ("c---c-u-..u-c-u-", "c---c-u-c-u-c-u-", "c---u---c-u-u-u-"),
        "3/4": ("c---c-u-c-u-", "c---u---u-u-"),
        "6/8": ("c---u-c---u-", "c-u-u-c-u-u-"),
    },
    "picking": {
        "4/4": ("0-2-1-3-0-2-1-3-", "0-3-1-2-0-3-1-2-", "0---3-1-2---3-1-"),
        "3/4": ("0-2-3-1-2-3-", "0---3-2-3-2-"),
        "6/8": ("0-2-3-1-2-3-", "0-1-2-3-2-1-"),
    },
    "eighths": {"4/4": ("c-c-c-c-c-c-c-c-", "c-.cc-c-c-.cc-c-"), "3/4": ("c-c-c-c-c-c-",), "6/8": ("c-c-c-c-c-c-", "c-u-u-c-u-u-")},
    "sixteenths": {"4/4": ("0123012301230123", "02.102.102.10213", "0.00.00.0.00.0.0")},
    "push": {"4/4": ("c-----c---c-----", "c-----c-------c-", "c---..c-..c-c---"), "6/8": ("c---u-c-----",)},
    "offbeats": {"4/4": ("..c-..c-..c-..c-",)},
    "stabs": {"4/4": ("c..c..c...c..c..", "c..c....c..c..c.", "..c...c.c..c....")},
    "charleston": {"4/4": ("c-....c---......", "..c-....c-....c-", "....c-......c-..", "c-....c-....c-.."), "6/8": ("c---u-....u-",), "3/4": ("c-....c-....",)},
    "lazy": {"4/4": ("c------c--......", "c---------c-----", "...c----..c-----"), "3/4": ("c-----c-----",)},
    "bossa": {"4/4": ("c-....c-....c-..", "c-..c-....c-..c-", "..c-....c-..c-..")},
    "skank": {"4/4": ("....c-......c-..", "..c-..c-..c-..c-", "....c-.c....c-..")},
    "shuffle": {"4/4": ("c---c-u-c---c-u-", "l-u-c-u-l-u-c-u-"), "6/8": ("c---u-c---u-",)},
    "funk": {"4/4": ("..c..c....c..c..", "c..c..c.....c.c.", "....c.cc....c...", "..c...c...c.c..c")},
}
BASSES = {
    "long": {"4/4": ("r---------------", "r-----------f---"), "3/4": ("r-----------", "r-------f---"), "6/8": ("r-----------", "r-----f-----")},
    "halves": {"4/4": ("r-------f-------", "r-------r-----a-"), "3/4": ("r-------f---", "r-------a---"), "6/8": ("r-----f-----", "r-----r---a-")},
    "oompah": {"4/4": ("r-..f-..r-..f-..", "r---f---r---f-a-"), "3/4": ("r---........", "r---....f---"), "6/8": ("r---..f---..", "r-....f-....")},
    "eighths": {"4/4": ("r-r-r-r-r-r-r-r-", "r-r-r-r-r-r-r-a-"), "3/4": ("r-r-r-r-r-r-",), "6/8": ("r-r-r-r-r-r-", "r-r-r-r-r-a-")},
    "rock": {"4/4": ("r-----r-r-------", "r---..r-r-..r-a-", "r-----r-----r-a-"), "6/8": ("r---r-r-----",)},
    "walking": {"4/4": ("r---w---w---a---",), "3/4": ("r---w---a---",), "6/8": ("r---w-w---a-",)},
    "shuffle": {"4/4": ("r-r-t-t-f-f-t-t-", "r-..t-..f-..a-..", "r-r-f-f-r-r-f-a-"), "6/8": ("r---t-f---t-", "r---r-f---a-")},
    "bossa": {"4/4": ("r-----f-f-----r-", "r-----f-f-----a-")},
    "reggae": {"4/4": ("r---..r-t-f-....", "....r-r---f-r-..", "r---r-..f---r-t-")},
    "lazy": {"4/4": ("r------r--......", "r-----..r--..ra-", "r--r--....r-f-..")},
    "offbeats": {"4/4": ("..r-..r-..r-..r-", "..r-..r-..o-..r-")},
    "pump": {"4/4": ("..rr..rr..rr..rr", "r.rr.rr.r.rr.rr.", "..ro..ro..ro..ro")},
    "sixteenths": {"4/4": ("rrrrrrrrrrrrrrrr", "r.rrr.ror.rrr.or")},
    "funk": {"4/4": ("r--r..o-..r.f.a.", "r..r..r-o..r..f.", "r-.ro.r...f.ro..")},
}
# The General MIDI keys of drums.
KICK, STICK, SNARE, CLAP, HAT, PEDAL, OPEN, CRASH, RIDE = 36, 37, 38, 39, 42, 44, 46, 49, 51
LOW_TOM, MID_TOM, HIGH_TOM, TAMBOURINE, COWBELL, HIGH_BONGO, LOW_BONGO, CONGA_SLAP, CONGA, LOW_CONGA, SHAKER = 45, 47, 50, 54, 56, 60, 61, 62, 63, 64, 70
_BACKBEAT = {KICK: "X.......X.......", SNARE: "....X.......X...", HAT: "x.x.x.x.x.x.x.x."}
_SOFT_TRIPLE = {KICK: "x...........", STICK: "....x...x...", HAT: "x...x...x.x."}
_SLOW_SIX = {KICK: "X.........x.", SNARE: "......X.....", HAT: "x.x.x.x.x.x."}
# style -> meter -> grooves, of which a clip has one.
GROOVES = {
    "ballad": {
        "4/4": (
            {KICK: "X.......x.x.....", STICK: "....x.......x...", HAT: "x.x.x.x.x.x.x.x."},
            _BACKBEAT | {KICK: "X......xx.......", SNARE: "....X..g....X..."},
        ),
        "3/4": (_SOFT_TRIPLE, {KICK: "X.......x...", SNARE: "....x...g.x.", RIDE: "x...x...x..."}),
        "6/8": (_SLOW_SIX, {KICK: "X...x.....x.", STICK: "......X.....", RIDE: "x.x.x.x.x.x."}),
    },
    "ambient": {
        "4/4": (
            {KICK: "X.........x.....", SHAKER: "x.g.x.g.x.g.x.g.", STICK: "....x.......x..."},
            {KICK: "X.......x.......", SNARE: "............x...", HAT: "x.x.x.x.x.x.x.x."},
        ),
        "3/4": ({KICK: "X...........", SHAKER: "x.g.x.g.x.g.", STICK: "........x..."},),
    },
    "lo-fi": {
        "4/4": (
            {KICK: "X......x..x.....", SNARE: "....X..g....X...", HAT: "x.x.x.x.x.x.x.xg"},
            {KICK: "X.....x...x.....", SNARE: "....X.......X..g", HAT: "x.xxx.x.x.xxx.x."},
        )
    },
    "march": {
        "4/4": (
            {KICK: "X.......X.......", SNARE: "x..gx.x.x..gx.xx"},
            {KICK: "X...x...X...x...", SNARE: "X.gxX.x.X.gxX.xx"},
            {KICK: "X...X...X...X...", SNARE: "..x...x...x.x.x."},
        ),
        "6/8": ({KICK: "X.....x.....", SNARE: "x.g.x.x.g.xx"},),
    },
    "folk": {
        "4/4": (
            {KICK: "x...x...x...x...", TAMBOURINE: "..x...x...x...x."},
            {CONGA: "X..x..x.X..x..x.", SHAKER: "xgxgxgxgxgxgxgxg"},
            {KICK: "X.......X.......", SNARE: "..g.x.g...g.x.gg"},
        ),
        "3/4": ({KICK: "X...........", TAMBOURINE: "....x...x..."}, {LOW_CONGA: "X...........", CONGA: "....x...x.x.", SHAKER: "x.g.x.g.x.g."}),
        "6/8": ({KICK: "X.....X.....", TAMBOURINE: "x.g.x.x.g.x."}, {LOW_CONGA: "X.....X.....", CONGA: "..g.x...g.x."}),
    },
    "waltz": {
        "3/4": (
            _SOFT_TRIPLE,
            {KICK: "X...........", SNARE: "....x...x...", PEDAL: "....x...x..."},
            {KICK: "X.......g...", RIDE: "x...x.x.x...", STICK: "....x...x..."},
        )
    },
    "house": {
        "4/4": (
            {KICK: "X...X...X...X...", CLAP: "....X.......X...", OPEN: "..x...x...x...x.", HAT: "x..xx..xx..xx..x"},
            {KICK: "X...X...X...X...", CLAP: "....X.......X...", OPEN: "..x...x...x...x.", SHAKER: "xgxgxgxgxgxgxgxg", STICK: "...x..x.....x..."},
        )
    },
    "techno": {
        "4/4": (
            {KICK: "X...X...X...X...", HAT: "..x...x...x...x.", CLAP: "............x...", RIDE: "..x...x...x...x."},
            {KICK: "X...X...X...X...", HAT: "xgxgxgxgxgxgxgxg", OPEN: "..x...x...x...x.", CLAP: "....X.......X..."},
        )
    },
    "rock": {
        "4/4": (
            _BACKBEAT | {KICK: "X.....x.X......."},
            {KICK: "X...x...X.x.x...", SNARE: "....X.......X...", OPEN: "x...x...x...x..."},
            {KICK: "X.......X.x.....", SNARE: "....X.......X..g", RIDE: "x.x.x.x.x.x.x.x."},
        )
    },
    "pop": {
        "4/4": (
            _BACKBEAT | {KICK: "X......x..x.....", TAMBOURINE: "....x.......x..."},
            {KICK: "X...X...X...X...", CLAP: "....X.......X...", HAT: "x.xxx.xxx.xxx.xx"},
            {KICK: "X..x..x.X..x....", SNARE: "....X.......X..g", HAT: "x.x.x.x.x.x.x.x."},
        ),
        "6/8": (_SLOW_SIX,),
    },
    "jazz": {
        "4/4": (
            {RIDE: "X...x.x.X...x.x.", PEDAL: "....x.......x...", KICK: "g.......g.......", SNARE: "......g.......g."},
            {RIDE: "x...X.x.x...X.x.", PEDAL: "....x.......x...", STICK: "............x..."},
        ),
        "3/4": ({RIDE: "X...x.x.x...", PEDAL: "....x...x...", KICK: "g..........."},),
    },
    "bossa nova": {
        "4/4": (
            {KICK: "X.....x.X.....x.", STICK: "x.....x.....x...", HAT: "x.x.x.x.x.x.x.x."},
            {KICK: "X.....x.X.....x.", STICK: "..x.....x.....x.", SHAKER: "xgxgxgxgxgxgxgxg", LOW_CONGA: "............x.x."},
        )
    },
    "reggae": {
        "4/4": (
            {KICK: "........X.......", STICK: "........X.......", HAT: "x.x.x.x.x.x.x.xg"},
            {KICK: "X.......X.......", SNARE: "........X.......", HAT: "x..xx..xx..xx..x"},
            {KICK: "X...X...X...X...", STICK: "........X..x....", HAT: "..x...x...x...x."},
        )
    },
    "blues": {
        "4/4": (
            {KICK: "X.......X.....x.", SNARE: "....X.......X...", RIDE: "x...x.x.x...x.x."},
            {KICK: "X.....x.X.......", SNARE: "....X.......X.g.", HAT: "x.x.x.x.x.x.x.x."},
        ),
        "6/8": (_SLOW_SIX, {KICK: "X.....g...x.", SNARE: "......X...g.", RIDE: "x.x.x.x.x.x."}),
    },
    "country": {
        "4/4": (
            {KICK: "X.......X.......", SNARE: "..g.X.g...g.X.gg"},
            {KICK: "X...x...X...x...", SNARE: "..x...x...x...x.", HAT: "x.x.x.x.x.x.x.x."},
            _BACKBEAT,
        ),
        "3/4": (_SOFT_TRIPLE, {KICK: "X...........", SNARE: "....x...x...", HAT: "x...x...x..."}),
    },
    "classical": {
        "4/4": (
            {KICK: "X.......x.......", SNARE: "x..gx...x..gx.xx"},
            {LOW_TOM: "X.....x.X...x.x.", KICK: "X...............", CRASH: "........x......."},
            {KICK: "X...x...X...x...", SNARE: "..x...x...x...x.", TAMBOURINE: "....x.......x..."},
        ),
        "3/4": ({KICK: "X...........", TAMBOURINE: "....x...x.x."}, {LOW_TOM: "X.......x.x.", SNARE: "....x...x..."}),
        "6/8": ({LOW_TOM: "X.....x...x.", TAMBOURINE: "....x.....x.", KICK: "X.....x....."},),
    },
    "hip hop": {
        "4/4": (
            {KICK: "X..x......X.....", SNARE: "....X.......X...", HAT: "x.x.x.x.x.x.x.x."},
            {KICK: "X.....xx..x.....", SNARE: "....X.......X..g", HAT: "x.x.xxx.x.x.x.xx"},
            {KICK: "X......x..X.....", CLAP: "....X.......X...", HAT: "xxx.xxx.xxx.xxxx", OPEN: "..............x."},
        )
    },
    "funk": {
        "4/4": (
            {KICK: "X..x..x...x..x..", SNARE: "....X..g.g..X..g", HAT: "x.xxx.xxx.xxx.x.", OPEN: "..............x."},
            {KICK: "X.x....x..x.....", SNARE: "....X..g.g.gX..g", HAT: "xxxxxxxxxxxxxxxx"},
            {KICK: "X..x..x.X..x....", SNARE: "....X.......X.g.", HAT: "x.x.x.x.x.x.x.x.", COWBELL: "x...x...x...x..."},
        )
    },
    "cinematic": {
        "4/4": (
            {LOW_TOM: "X..x..x.X..x..x.", KICK: "X.......X.......", MID_TOM: "............x.x."},
            {KICK: "X.......x.......", LOW_TOM: "X...x.x.x...x.xx", SNARE: "............X..."},
        ),
        "3/4": ({LOW_TOM: "X...x...x.x.", KICK: "X..........."}, {KICK: "X...........", LOW_TOM: "X.x.x.x.x.x."}),
        "6/8": ({LOW_TOM: "X.x.x.X.x.x.", KICK: "X.....X....."}, {KICK: "X.....x.....", LOW_TOM: "X...x.X...x.", SNARE: "..........x."}),
    },
    "celtic": {
        "4/4": ({LOW_CONGA: "X..xx.x.X..xx.x.", TAMBOURINE: "....x.......x..."}, {LOW_BONGO: "X.x.x.x.X.x.x.xx", SHAKER: "x.x.x.x.x.x.x.x."}),
        "3/4": ({LOW_CONGA: "X...x...x.x.", SHAKER: "x.g.x.g.x.g."},),
        "6/8": ({LOW_CONGA: "X.g.x.X.g.x.", TAMBOURINE: "......x....."}, {LOW_CONGA: "X.x.x.X.x.x.", SHAKER: "x.x.x.x.x.x."}),
    },
}
# How fills end a bar, by meter.
FILLS = {
    "4/4": (
        {SNARE: "........x.xxX.XX"},
        {SNARE: "........xxxx....", HIGH_TOM: "............xx..", LOW_TOM: "..............XX"},
        {SNARE: "............xxxX", KICK: "........x......."},
        {SNARE: "........X..X..X.", LOW_TOM: "........x..x..x."},
        {HIGH_TOM: "........x.x.....", MID_TOM: "............x.x.", LOW_TOM: "..............xX"},
    ),
    "3/4": ({SNARE: "......xxX.XX"}, {HIGH_TOM: "......xx....", LOW_TOM: "........x.XX"}, {SNARE: "........xxXX"}),
    "6/8": ({SNARE: "......x.xxXX"}, {HIGH_TOM: "......x.x...", LOW_TOM: "..........XX", SNARE: "......x....."}),
}
HAND_FILLS = {
    "4/4": ({HIGH_BONGO: "........x.xx.x..", LOW_BONGO: "............x.XX"}, {CONGA: "........X..xX...", LOW_CONGA: ".............xXX"}),
    "3/4": ({HIGH_BONGO: "......x.x...", LOW_BONGO: "........x.XX"},),
    "6/8": ({HIGH_BONGO: "......x.x...", LOW_BONGO: "......x...XX"}, {CONGA: "......x.x.x.", LOW_CONGA: "..........XX"}),
}
