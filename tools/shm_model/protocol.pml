/* The protocol of csrc/native/shm_protocol.h and shm_communicator.cpp, for the model checker spin.
 *
 * RANKS processes run N collectives. Each is, by a choice made at the start, on a bucket in place
 * (started, worked off at any later moment, waited for) or through the stage (two buffers a rank,
 * blocking). Explored: every interleaving of single loads and stores (sequential consistency), every
 * mix of kinds, every moment of working off, with futex sleep and wake; with VICTIM also a kill of
 * that rank at every step. Naps do not end by themselves among ranks that run, so that a wake-up
 * that is lost shows as a deadlock.
 *
 * Not modelled: weaker memory orders (the code uses seq_cst and acquire/release as said there),
 * time-outs, more than one kill.
 */
#ifndef RANKS
#define RANKS 2
#endif
#ifndef N
#define N 4
#endif
#ifndef SLOTS
#define SLOTS 2
#endif

#define ARRIVED(r) (r)
#define DONE(r) (RANKS + (r))

byte value[2 * RANKS];     /* counters */
byte sleepers[2 * RANKS];
bool asleep[RANKS];
byte bed[RANKS];           /* the counter on which a rank sleeps */
bool left[RANKS], dead[RANKS], failed;
byte slot[RANKS * SLOTS];  /* the number whose descriptor is there */
byte squares[RANKS * SLOTS];
byte memory[RANKS * 2];    /* bucket or stage: the number whose data is there */
bool staged[N + 1];
byte kill_rank = RANKS;
bool ready;

#define DISTURBED (failed || kill_rank < RANKS || left[0] || left[1] || left[RANKS - 1])

inline wake(c) {
  d_step {
    w = 0;
    do
    :: w < RANKS -> if :: asleep[w] && bed[w] == (c) -> asleep[w] = false :: else fi; w++
    :: else -> break
    od; w = 0
  }
}

inline publish(c, v) {
#ifdef FAULT_LOOK_BEFORE_STORE
  tmp = sleepers[c];
  value[c] = v;
  if :: tmp -> wake(c) :: else fi; tmp = 0
#else
  value[c] = v;
  if :: sleepers[c] -> wake(c) :: else fi
#endif
}

/* wait_for and idle */
inline wait_counter(c, r, n) {
  do
  :: seen = value[c];
     if :: seen >= n -> seen = 0; break :: else fi;
#ifdef FAULT_BLAME_WITNESS
     if :: failed -> goto error :: else fi;
     gone = left[r] || dead[r];
#else
     gone = left[r] || dead[r];
     if :: failed -> gone = false; goto error :: else fi;
#endif
#ifdef FAULT_LAST_LOOK
     if
     :: gone -> gone = false; goto error
     :: else
     fi;
#else
     if
     :: gone && value[c] < n -> gone = false; assert(r == kill_rank); goto error
     :: else -> gone = false
     fi;
#endif
#ifdef FAULT_SLEEP_UNCHECKED
     sleepers[c]++;
     atomic { asleep[me] = true; bed[me] = c };
#else
     sleepers[c]++;
     atomic { if :: value[c] == seen -> asleep[me] = true; bed[me] = c :: else fi };
#endif
     atomic { (!asleep[me] || DISTURBED) -> asleep[me] = false };
     sleepers[c]--
  od
}

inline wait_everyone(base, n) {
  at = 0;
  do
  :: at < RANKS -> wait_counter(base + at, at, n); at++
  :: else -> break
  od; at = 0
}

/* What rank r has brought to n is there. */
inline check_brought(n) {
  d_step {
    at = 0;
    do
    :: at < RANKS ->
       assert(slot[at * SLOTS + (n) % SLOTS] == n);
       assert(memory[at * 2 + (n) % 2] == n);
       at++
    :: else -> break
    od; at = 0
  }
}

/* All have arrived at n. Numbers in memory only grow: seen at the beginning and at the end, they
   were there in between. */
inline work(n) {
  check_brought(n);
#ifdef FAULT_DONE_BEFORE_WORK
  publish(DONE(me), n);
#endif
  squares[me * SLOTS + (n) % SLOTS] = n;
  check_brought(n);
#ifndef FAULT_DONE_BEFORE_WORK
  publish(DONE(me), n)
#endif
}

/* Communicator::wait without its last line, and finish_own_part */
inline work_up_to(n) {
  do
  :: worked < n && worked < started ->
     wait_everyone(ARRIVED(0), worked + 1);
     work(worked + 1);
     worked++
  :: else -> break
  od
}

inline complete(n) {
  work_up_to(n);
  wait_everyone(DONE(0), n);
}

proctype rank(byte me) {
  byte n, started, worked, at, seen, w, tmp;
  bool gone;
  ready;
  {
    do
    :: started < N ->
       n = started + 1;
       /* One buffer, or bucket, for even numbers and one for odd: what used it before must be
          over. */
#ifndef FAULT_ONE_STAGE
       if :: n > 2 -> complete(n - 2) :: else fi;
#endif
       memory[me * 2 + n % 2] = n;
#ifndef FAULT_SLOT_REUSE
       if
       :: n > SLOTS ->
          complete(n - SLOTS);
          d_step {
            do
            :: at < RANKS ->
               assert(squares[at * SLOTS + (n - SLOTS) % SLOTS] == n - SLOTS);
               at++
            :: else -> break
            od; at = 0
          }
       :: else
       fi;
#endif
       slot[me * SLOTS + n % SLOTS] = n;
#ifdef FAULT_NORM_CLEARED_EARLY
       squares[me * SLOTS + n % SLOTS] = 0;
#endif
       started = n;
       publish(ARRIVED(me), n);
       if
       :: staged[n] -> work_up_to(n)
       :: else -> if :: work_up_to(n) :: true fi
       fi
    :: else -> break
    od;
    complete(N);
    left[me] = true;
    wake(ARRIVED(me));
    wake(DONE(me));
    goto over;
error:
    /* Among ranks that all run to the end nobody may be found at fault; else the one killed. */
    assert(kill_rank < RANKS);
    failed = true;
    wake(ARRIVED(me));
    wake(DONE(me));
    dead[me] = true;
over:
    skip
  } unless { kill_rank == me && !left[me] -> atomic { dead[me] = true; asleep[me] = false } }
}

#ifdef VICTIM
proctype killer() {
  ready;
  kill_rank = VICTIM
}
#endif

init {
  byte i;
  atomic {
    i = 1;
    do
    :: i <= N -> if :: staged[i] = true :: staged[i] = false fi; i++
    :: else -> break
    od;
    i = 0;
    do
    :: i < RANKS -> run rank(i); i++
    :: else -> break
    od;
#ifdef VICTIM
    run killer();
#endif
    ready = true
  }
}
