/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A model of who owns the guest: the inside of tests/model/owner*.c.
 *
 * Theory of operation
 * -------------------
 * One guest at a source, and two destinations that have the same id and token: each of the three
 * is a daemon, its record and a VMM. Beside them there are an operator, who may order anything that
 * a daemon does not refuse, and bad luck: connections are cut (what was sent over them is lost, or
 * is read late), or swallow all that is said; daemons are killed between any two steps, with a
 * store and without; VMMs die, can't pause, can't load.
 *
 * A step is what is one in the code, too: what is done under one lock, or by the loop up to where
 * others can see it. So a connection's thread that decides (and posts news) and the loop that takes
 * the news are two; what goes into the record and what is done then are two where somebody could
 * be told in between.
 *
 * In memory and in the record are kept apart only where they may differ: what is not named
 * otherwise below is in the record the moment it is decided (migration_move() writes it), and what
 * is volatile is lost or made anew by source_taken_over() and destination_taken_over().
 *
 * What is left out: memory is one bit a destination (something is missing); the bulk and urgent
 * connections are one; a handshake, and a sign of life, are one step; the way from VMM to daemon
 * keeps its order and two messages; the guest is attached anew once, a daemon without a store is
 * told of the migration anew once; cuts, kills and the like are counted in struct luck;
 * certificates, limits, private memory and time itself (a time limit may be over at any moment) are
 * not there; nor is what comes of a vmstate ahead, by which nobody decides anything. That the
 * operator who orders "run on here" or "release" has made sure that the holder does not run (does
 * not need it) is taken for granted: it is what the confirmation asks of him.
 */
#ifndef MODEL_OWNER_H
#define MODEL_OWNER_H

#include "migrate/state.h"

#include "explore.h"

/* What can be taken out, see owner.c. */
enum owner_switch {
	OWNER_ONE_HOLDER = 1 << 0,
	OWNER_LATEST_CONNECTION = 1 << 1,
	OWNER_RECORD_FIRST = 1 << 2,
	OWNER_FAREWELL_FIRST = 1 << 3,
	OWNER_RESUME_LATE_PAUSED = 1 << 4,
	OWNER_REPEAT_RESUME = 1 << 5,
	OWNER_EPOCH_PINNED = 1 << 6,
	OWNER_GOODBYE_BY_ANSWER = 1 << 7,
	OWNER_TIME_LIMIT = 1 << 8,
	OWNER_ONE_OWNER_OF_PAUSED = 1 << 9,
	OWNER_NONE_HAS_RUN = 1 << 10,
};

/* What a destination asks on its control connection. */
enum frame { FRAME_NOTHING, FRAME_SWITCHOVER, FRAME_RESUMED, FRAME_COMPLETE, FRAME_ABORT };

/* What it is answered; from NOT_NOW on by an ERROR, after which the connection ends. */
enum answer {
	ANSWER_NONE,
	ANSWER_VMSTATE,
	ANSWER_COMPLETE_ACK,
	ANSWER_ABORT_ACK,
	ANSWER_NOT_NOW, /* the connection is to what is withdrawn: ask again on another */
	ANSWER_RUNS_ON, /* the guest is the source's */
	ANSWER_LET_GO,  /* the guest is the holder's */
	ANSWER_REFUSED, /* unknown, held by another, could not pause, makes no sense */
	ANSWER_STALE,   /* of a handshake: the guest was attached anew */
};

/* What a thread of the source's page server waits for before it answers. */
enum serving { SERVING_NOTHING, SERVING_VMSTATE, SERVING_COMPLETE, SERVING_ABORT };

/* A destination's control connection. */
struct link {
	unsigned int epoch : 2; /* the attachment at its other end; 0: there is no connection */
	unsigned int asked : 3; /* enum frame, on its way */
	unsigned int serving : 2;
	unsigned int answer : 3;  /* on its way */
	unsigned int mute : 1;    /* what is said is swallowed, and nobody has noticed yet */
	unsigned int resumed : 1; /* RESUMED was said on it */
	/* Of a connection that is lost: what the source may still read, and who has said it. */
	unsigned int late : 3;
	unsigned int late_epoch : 2;
	unsigned int late_holder : 3;
};

/* The page source: who may have the guest. */
enum phase { PHASE_RUNNING, PHASE_SWITCHING, PHASE_PAUSED, PHASE_ENDED };
enum verdict { VERDICT_RUNS_ON, VERDICT_LET_GO };

enum source_vmm { SOURCE_GUEST_RUNS, SOURCE_STOPPING, SOURCE_GUEST_PAUSED, SOURCE_EXITED };

/* Between a source's daemon and VMM, in their socket. */
enum word { WORD_NONE, WORD_PAUSE, WORD_RESUME, WORD_COMPLETE };
enum said { SAID_NOTHING, SAID_PAUSED, SAID_PAUSED_BEFORE_IT_RAN_ON, SAID_CANT_PAUSE };

struct source {
	unsigned int up : 1;    /* the daemon runs */
	unsigned int known : 1; /* and knows the migration */
	unsigned int state : 4; /* enum migration_state */
	unsigned int epoch : 2; /* counts attachments */
	unsigned int phase : 2;
	unsigned int verdict : 1;
	unsigned int holder : 3;          /* 0: nobody */
	unsigned int recorded_holder : 3; /* as the record has it */
	unsigned int aborted : 1;         /* volatile: ABORT was taken, the loop does not know */
	unsigned int resumed : 1;         /* the holder has said that the guest ran there */
	unsigned int vmstate : 1;         /* held, and in the record */
	/* Volatile: news for the loop, and what it has decided to do next. */
	unsigned int news_switchover : 1;
	unsigned int news_resumed : 1;
	unsigned int news_complete : 1;
	unsigned int news_aborted : 1;
	unsigned int to_say : 2;     /* enum word, to the VMM */
	unsigned int catches_up : 1; /* but first it hears what was said to the process before */
	/* The VMM, and its socket. */
	unsigned int vmm : 2;
	unsigned int vmm_gone : 1; /* its end of the socket is closed */
	unsigned int words0 : 2, words1 : 2;
	unsigned int said0 : 2, said1 : 2;
};

/* Where a destination's conductor is. */
enum conductor {
	CONDUCTOR_IDLE,
	CONDUCTOR_WARMING,     /* connecting all */
	CONDUCTOR_WARM,        /* waits for the order */
	CONDUCTOR_ASKING,      /* for the vmstate, until it has it */
	CONDUCTOR_HAS_VMSTATE, /* and asks the loop to give it to the VMM */
	CONDUCTOR_PULLING,
	CONDUCTOR_SAYS_COMPLETE,
	CONDUCTOR_SAYS_ABORT,
};

enum destination_vmm {
	VMM_NONE,
	VMM_ATTACHED,
	VMM_GIVEN, /* the vmstate is in its socket */
	VMM_LOADED,
	VMM_GUEST_RUNS,
	VMM_CANT_LOAD, /* or can't run, though it is loaded: no vCPU has */
	VMM_STOPPED,   /* told that it has failed */
};

enum farewell { NO_FAREWELL, FAREWELL_COMPLETE, FAREWELL_ABORT };

struct destination {
	unsigned int up : 1;
	unsigned int known : 1;
	unsigned int state : 4;
	unsigned int holder : 3; /* what it calls itself */
	unsigned int conductor : 3;
	unsigned int epoch : 2;      /* pinned; 0: not yet */
	unsigned int pull_epoch : 2; /* what the page connections ask for */
	unsigned int switchover : 1; /* ordered */
	unsigned int cancel : 1;     /* ordered */
	unsigned int poison : 1;     /* volatile: ordered */
	unsigned int giving : 1; /* volatile: the vmstate, to the VMM, is the next that is done */
	unsigned int farewell : 2;
	unsigned int loaded : 1;
	unsigned int ran : 1; /* RESUMED was heard of the VMM */
	unsigned int taken_over : 1;
	unsigned int missing : 1;   /* pages */
	unsigned int connected : 1; /* volatile: the page connections, in truth */
	unsigned int
	        note_pending : 1; /* volatile, only without the mend: the fault thread is about */
	unsigned int stalled : 1; /* to write that they are not; and that it has */
	unsigned int poisoned : 1;
	unsigned int to_stop : 1; /* the VMM is to be told that the guest is not its own */
	unsigned int vmm : 3;
	unsigned int vmm_dead : 1;
};

/* What the checks remember. */
struct history {
	unsigned int ran : 1;  /* a destination has run the guest as it was paused */
	unsigned int hurt : 1; /* something died, or was given up by order: an operator is needed */
	unsigned int store : 1; /* daemons have one */
};

struct world {
	struct source source;
	struct destination destinations[2];
	struct link links[2];
	struct history history;
	unsigned int luck; /* how much more may go wrong */
};

/* Move as migration_move() does; an arrow that state.c does not have is a violation. */
void owner_move_source(struct world *w, enum migration_state to);
void owner_move_destination(struct world *w, unsigned int i, enum migration_state to);

/* Which arrows were moved along, and which states were seen. */
extern bool owner_arrows[MIGRATION_STATES][MIGRATION_STATES];

static inline bool link_is_busy(const struct link *l)
{
	return l->asked || l->serving || l->answer || l->mute;
}

/*
 * A new control connection, if the source lets it in. Either way what its holder has said on former
 * ones does not count any more.
 */
enum answer link_dial(struct world *w, unsigned int i, unsigned int epoch);

/* The end of a connection: what is on its way to the source may still arrive. */
void link_lose(struct world *w, unsigned int i);

/* The end of its page connections. */
void pages_lose(struct world *w, unsigned int i);

/* The handshake of a control connection, or of one for pages. Return: how it is answered. */
enum answer source_hello(const struct world *w, unsigned int i, unsigned int epoch);

/* Whether no daemon and no VMM is left by which the holder's guest runs, or may run. */
bool owner_is_fenced(const struct world *w);

void source_taken_over(struct world *w);
void destination_taken_over(struct world *w, unsigned int i);

/* The rules, in owner_source.c, owner_destination.c and owner_world.c. */
extern const struct rule owner_source_rules[], owner_destination_rules[], owner_world_rules[];
extern const size_t owner_source_n_rules, owner_destination_n_rules, owner_world_n_rules;

/*
 * owner_model() - the model
 * @luck: how often something may go wrong while there are two destinations, @luck_of_one: with one
 */
const struct model *owner_model(unsigned int luck, unsigned int luck_of_one);

#endif
